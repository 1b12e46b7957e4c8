"""Where a pass stands behind its cache, and what each of its tokens may see."""

import torch

from efficientllm.models.attention import decodes_by_products
from efficientllm.models.cache import DecodingCache
from efficientllm.models.decoding_attention import has_own_kernel
from efficientllm.models.interfaces import Mixer, Position, Span


def whole_rows(keys: int) -> int:
    """Returns the next multiple of 8.

    A GPU's matrix products of 16-bit numbers read whole rows of 16 bytes, and are slow where rows have other lengths: 35 us
    instead of 5 for the values of 8 sequences of 2,033 tokens instead of 2,032 (docs/log.md).
    """
    return -(-keys // 8) * 8


def span_behind(input_ids_bt: torch.Tensor, cache: DecodingCache | None, padding_mask_bt: torch.Tensor | None) -> Span:
    """Places a chunk behind its cache, whose padding mask it extends."""
    batch, length = input_ids_bt.shape
    start = 0 if cache is None else cache.length
    if cache is not None:
        cache.check_room(batch, length)
    span = Span(start, length)
    known_bs = None if cache is None else cache.padding_mask_bs
    if padding_mask_bt is None and known_bs is None:
        return span
    if padding_mask_bt is None:
        span.padding_mask_bt = torch.ones(batch, length, dtype=torch.bool, device=input_ids_bt.device)
    else:
        span.padding_mask_bt = padding_mask_bt.bool()
    real_bs = span.padding_mask_bt
    if cache is not None:
        if known_bs is None:
            known_bs = torch.ones(batch, cache.max_length, dtype=torch.bool, device=input_ids_bt.device)
            cache.padding_mask_bs = known_bs
        known_bs[:, start : span.end] = span.padding_mask_bt
        real_bs = known_bs[:, : span.end]
    span.key_real_bs = real_bs
    span.key_positions_bs = (real_bs.long().cumsum(dim=1) - 1).clamp_min(0)
    span.positions_bt = span.key_positions_bs[:, start:]
    return span


def share(span: Span, hidden_btc: torch.Tensor, position: Position, mixer: Mixer) -> None:
    """Computes once what all layers need, and puts it into the span: the rotation, and the mask or bias of the scores.

    Args:
        span: Where the chunk stands.
        hidden_btc: Its embedding, for the device and the type.
        position: The decoder's positional encoding.
        mixer: Any of its mixers.
    """
    device = hidden_btc.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else hidden_btc.dtype
    like = torch.empty(0, dtype=dtype, device=device)
    span.rotation = position.rotation(span, mixer.rotary_dim, like)
    bias_hp = position.bias_by_distance(span.end, like)
    alone = span.length == 1 and span.start > 0 and span.key_real_bs is None
    if alone and reads_whole_rows(position, mixer, device):
        span.keys = whole_rows(span.end)
        span.attention_mask = causal_mask(span, device)
    else:
        span.attention_mask = attention_mask(span, device)
    if bias_hp is not None and span.attention_mask is None and span.start == 0 and mixer.applies_bias(device):
        from efficientllm.models.biased_attention import causal_blocks

        span.bias_by_distance_hp = bias_hp
        span.causal_blocks = causal_blocks(span.length, device)
    elif bias_hp is not None:
        visible = causal_mask(span, device) if span.attention_mask is None else span.attention_mask
        span.attention_mask = spread(bias_hp, span).masked_fill(~visible, -torch.inf)
    span.causal = span.attention_mask is None and span.length > 1


def reads_whole_rows(position: Position, mixer: Mixer, device: torch.device) -> bool:
    """Whether the attention of a single query is computed by matrix products, which want `whole_rows`."""
    if not decodes_by_products(device) or not (mixer.decodes_by_products or position.biases_scores):
        return False
    return not has_own_kernel(device, *mixer.decoding_group)


def causal_mask(span: Span, device: torch.device) -> torch.Tensor:
    """True where key s is not later than query t, `[1, 1, T, S]`."""
    queries = torch.arange(span.start, span.end, device=device)
    return (torch.arange(span.keys, device=device) <= queries[:, None])[None, None]


def spread(bias_hp: torch.Tensor, span: Span) -> torch.Tensor:
    """Spreads a bias by distance over queries and keys, `[B or 1, H, T, S]`; keys after their query get any value."""
    keys = span.key_positions_bs
    if keys is None:
        keys = torch.arange(span.keys, device=bias_hp.device)[None]
    distance_bts = (keys[:, span.start : span.end, None] - keys[:, None, :]).clamp(0, bias_hp.shape[1] - 1)
    return bias_hp[:, distance_bts].transpose(0, 1)


def attention_mask(span: Span, device: torch.device) -> torch.Tensor | None:
    """Boolean mask broadcastable to `[B, H, T, S]`; None where the causal flag, or a single query, says it all."""
    if span.key_real_bs is None:
        return None if span.start == 0 or span.length == 1 else causal_mask(span, device)
    causal = causal_mask(span, device)
    # a padding token sees itself, so that no row of the softmax is empty
    itself = torch.eye(span.length, span.end, dtype=torch.bool, device=device).roll(span.start, dims=1)
    return causal & (span.key_real_bs[:, None, None, :] | itself)
