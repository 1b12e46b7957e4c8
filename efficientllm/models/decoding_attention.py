"""Attention of one query for each head, as decoding has it, by the kernel that is the fastest for that.

A GPU's attention kernels are made for many queries, and give each key-value head of each sequence a block of their own. While
decoding that leaves most of the device idle, the more so the longer the cache and the fewer the heads that have keys.
"""

import functools
import importlib.util

import torch
from torch.nn import functional as F

_MOST_QUERIES = 32  # of a group; more were not tried


# an operator of its own, since a compiled program would be bound to one kernel, and to the cache's lengths that take it
@torch.library.custom_op("efficientllm::decoding_attention", mutates_args=())
def decoding_attention(
    q_bkgd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Computes softmax(scale Q K^T) V for one query of each head, on any device; without gradients.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bksd: Values, of the keys' width.
        scale: Factor of the scores; 1 / sqrt(D) by default.

    Returns:
        Attention output `[B, K, G, D]`, contiguous.
    """
    if not takes_own_kernel(q_bkgd):
        return F.scaled_dot_product_attention(q_bkgd, k_bksd, v_bksd, scale=scale).contiguous()
    from efficientllm.models.split_attention import split_attention

    return split_attention(q_bkgd, k_bksd, v_bksd, q_bkgd.shape[-1] ** -0.5 if scale is None else scale)


@decoding_attention.register_fake
def _(q_bkgd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, scale: float | None) -> torch.Tensor:
    del k_bksd, v_bksd, scale
    return torch.empty_like(q_bkgd, memory_format=torch.contiguous_format)


def takes_own_kernel(q_bkgd: torch.Tensor) -> bool:
    """Whether `split_attention` is faster than PyTorch's choice: but for many heads that share no keys (docs/log.md)."""
    if q_bkgd.device.type != "cuda" or not _has_triton():
        return False
    batch, key_heads, groups, _ = q_bkgd.shape
    few = batch * key_heads <= torch.cuda.get_device_properties(q_bkgd.device).multi_processor_count
    return (few or groups > 1) and groups <= _MOST_QUERIES


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
