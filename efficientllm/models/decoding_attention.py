"""Attention of one query for each head, as decoding has it, by the kernel that is the fastest for that.

A GPU's attention kernels are made for many queries, and give each key-value head of each sequence a block of their own. While
decoding that leaves most of the device idle, the more so the longer the cache and the fewer the heads that have keys.
"""

import importlib.util

import torch
from torch.nn import functional as F

_MOST_QUERIES, _WIDEST = 32, 256  # of a group, and of a head; more were not tried, or are too much for a multiprocessor
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # not asked within compiled code, which would end there


def has_own_kernel(device: torch.device, queries: int, width: int) -> bool:
    """Whether there is a kernel that splits the keys.

    Args:
        device: Where it would run.
        queries: Heads that share keys.
        width: Width of the keys or the values, whichever are wider.
    """
    return device.type == "cuda" and _HAS_TRITON and queries <= _MOST_QUERIES and width <= _WIDEST


# an operator of its own, since a compiled program would be bound to one kernel, and to the cache's lengths that take it
@torch.library.custom_op("efficientllm::decoding_attention", mutates_args=())
def decoding_attention(
    q_bkgd: torch.Tensor,
    k_bksd: torch.Tensor,
    v_bkse: torch.Tensor,
    mask_bkgs: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Computes softmax(scale Q K^T + mask) V for one query of each head, on any device; without gradients.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bkse: Values, whose width E may differ from that of the keys.
        mask_bkgs: True where a key is seen, or what is added to the scores; any dimension may be 1; None for neither.
        scale: Factor of the scores; 1 / sqrt(D) by default.

    Returns:
        Attention output `[B, K, G, E]`, contiguous.
    """
    if not takes_own_kernel(q_bkgd, v_bkse, mask_bkgs):
        out = F.scaled_dot_product_attention(q_bkgd, k_bksd, v_bkse, attn_mask=mask_bkgs, scale=scale)
        return out.contiguous()
    from efficientllm.models.split_attention import split_attention

    return split_attention(q_bkgd, k_bksd, v_bkse, mask_bkgs, q_bkgd.shape[-1] ** -0.5 if scale is None else scale)


@decoding_attention.register_fake
def _(
    q_bkgd: torch.Tensor,
    k_bksd: torch.Tensor,
    v_bkse: torch.Tensor,
    mask_bkgs: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    del k_bksd, mask_bkgs, scale
    return q_bkgd.new_empty(*q_bkgd.shape[:3], v_bkse.shape[3])


def takes_own_kernel(q_bkgd: torch.Tensor, v_bkse: torch.Tensor, mask_bkgs: torch.Tensor | None) -> bool:
    """Whether `split_attention` is faster than PyTorch's choice: but for many heads that share no keys (docs/log.md)."""
    batch, key_heads, groups, width = q_bkgd.shape
    if not has_own_kernel(q_bkgd.device, groups, max(width, v_bkse.shape[3])):
        return False
    few = batch * key_heads <= torch.cuda.get_device_properties(q_bkgd.device).multi_processor_count
    return few or groups > 1 or mask_bkgs is not None or width != v_bkse.shape[3]
