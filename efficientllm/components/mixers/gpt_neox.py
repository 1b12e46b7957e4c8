"""Multi-head attention of GPT-NeoX and Pythia: biased projections, and rotation of a quarter of each head.

Black et al. 2022, arXiv 2204.06745, section 2.1; Biderman et al. 2023, arXiv 2304.01373. Queries, keys and values stand
in three matrices where GPT-NeoX interleaves them in one, which only permutes rows.
"""

from pydantic import Field

from efficientllm.config.schema import Section
from efficientllm.models.attention import GroupedAttention
from efficientllm.models.config import DecoderConfig


class GPTNeoXOptions(Section):
    """The share of each head that is rotated."""

    rotary_fraction: float = Field(default=0.25, gt=0, le=1)


class GPTNeoXAttention(GroupedAttention):
    """Attention with as many key-value heads as query heads."""

    Options = GPTNeoXOptions

    def __init__(self, config: DecoderConfig) -> None:
        fraction = self.checked_options(config).rotary_fraction
        super().__init__(config, key_value_heads=config.heads, bias=True, rotary_fraction=fraction)


COMPONENT = GPTNeoXAttention
