"""Fused attention of one query for each head, by the kernel that is the faster for a cache of that length.

A GPU's attention kernels give each key-value head of each sequence a block of their own. While decoding, where a group of
heads shares keys and few sequences are served, that leaves most of the device idle, the more so the longer the cache:
PyTorch's flash kernel then splits the keys among blocks and combines what they found (flash decoding, Dao et al. 2023).
cuDNN's, which PyTorch prefers, does not, and is the faster for few keys (docs/log.md).
"""

import contextlib

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_FLASH_FIRST = [
    SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip
_LEAST_SPLIT_KEYS = 512


# an operator of its own, since a compiled program would be bound to one kernel, and to the cache's lengths that take it
@torch.library.custom_op("efficientllm::grouped_query", mutates_args=())
def grouped_query(
    q_bkgd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Computes softmax(scale Q K^T) V for one query of each head, on any device; without gradients.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bksd: Values.
        scale: Factor of the scores; 1 / sqrt(D) by default.

    Returns:
        Attention output `[B, K, G, D]`, contiguous.
    """
    splits = splits_keys(q_bkgd, k_bksd.shape[2])
    with sdpa_kernel(_FLASH_FIRST, set_priority=True) if splits else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q_bkgd, k_bksd, v_bksd, scale=scale).contiguous()


@grouped_query.register_fake
def _(q_bkgd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, scale: float | None) -> torch.Tensor:
    del k_bksd, v_bksd, scale
    return torch.empty_like(q_bkgd, memory_format=torch.contiguous_format)


def splits_keys(q_bkgd: torch.Tensor, keys: int) -> bool:
    """Whether splitting the keys is worth a second kernel: where there are many, and fewer heads than multiprocessors."""
    if q_bkgd.device.type != "cuda":
        return False
    heads = q_bkgd.shape[0] * q_bkgd.shape[1]
    return keys >= _LEAST_SPLIT_KEYS and heads < torch.cuda.get_device_properties(q_bkgd.device).multi_processor_count
