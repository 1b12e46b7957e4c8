"""Grouped-query attention: groups of query heads share a key and value head (Ainslie et al. 2023, arXiv 2305.13245)."""

from pydantic import Field

from efficientllm.config.schema import Section
from efficientllm.models.attention import GroupedAttention
from efficientllm.models.config import DecoderConfig


class GroupedQueryOptions(Section):
    """What sets published models apart: Qwen2's biases, Qwen3's norms, heads whose width is not the hidden size's share."""

    bias: bool = Field(default=False, description="biases of the query, key and value projections")
    qk_norm: bool = Field(default=False, description="RMSNorm of each head's query and key, before their rotation")
    head_dim: int | None = Field(default=None, ge=2, description="width of a head; null for hidden_size / heads")


class GroupedQueryAttention(GroupedAttention):
    """Attention with the configuration's number of key-value heads."""

    Options = GroupedQueryOptions

    def __init__(self, config: DecoderConfig) -> None:
        options = self.checked_options(config)
        super().__init__(
            config, config.key_value_heads, bias=options.bias, output_bias=False, head_dim=options.head_dim,
            qk_norm=options.qk_norm,
        )  # fmt: skip


COMPONENT = GroupedQueryAttention
