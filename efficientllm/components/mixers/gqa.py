"""Grouped-query attention: groups of query heads share a key and value head (Ainslie et al. 2023, arXiv 2305.13245)."""

from efficientllm.models.attention import GroupedAttention
from efficientllm.models.config import DecoderConfig


class GroupedQueryAttention(GroupedAttention):
    """Attention with the configuration's number of key-value heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, key_value_heads=config.key_value_heads)


COMPONENT = GroupedQueryAttention
