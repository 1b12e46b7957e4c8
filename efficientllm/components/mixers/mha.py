"""Multi-head attention: every query head has its own key and value head (Vaswani et al. 2017, arXiv 1706.03762)."""

from efficientllm.models.attention import GroupedAttention
from efficientllm.models.config import DecoderConfig


class MultiHeadAttention(GroupedAttention):
    """Attention with as many key-value heads as query heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, key_value_heads=config.heads)


COMPONENT = MultiHeadAttention
