"""Multi-query attention: all query heads share one key and value head (Shazeer 2019, arXiv 1911.02150)."""

from efficientllm.models.attention import GroupedAttention
from efficientllm.models.config import DecoderConfig


class MultiQueryAttention(GroupedAttention):
    """Attention with a single key-value head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, key_value_heads=1)


COMPONENT = MultiQueryAttention
