"""Products of a few rows with a matrix of 4-bit weights, as an operator: decoding several sequences by a quantized model."""

from collections.abc import Sequence
from typing import Any

import torch

MOST_ROWS = 64
"""Rows that the kernel takes; for more, writing the weights out once costs less than looking them up for each tile of rows."""


# an operator of its own, which the compiler leaves whole
@torch.library.custom_op("efficientllm::packed_product", mutates_args=())
def packed_product(
    x: torch.Tensor,
    packed: torch.Tensor,
    shape: Sequence[int],
    absmax: torch.Tensor,
    block_size: int,
    quantization_type: str,
    bias: torch.Tensor | None,
    absmax_8bit: torch.Tensor | None,
    absmax_code: torch.Tensor | None,
    absmax_offset: torch.Tensor | None,
) -> torch.Tensor:
    """Computes x W^T + bias of weights as bitsandbytes packs them, with the arguments of its `gemm_4bit`; without gradients.

    Args:
        x: Rows `[..., C]`.
        packed: The matrix W, two weights a byte, `[J C / 2, 1]` in uint8.
        shape: J and C.
        absmax: Each block's scale `[J C / block_size]`, or, of scales in 8 bits, the scale of each 256 of them.
        block_size: Weights that share a scale.
        quantization_type: `nf4` or `fp4`.
        bias: What is added `[J]`.
        absmax_8bit: Scales in 8 bits (double quantization).
        absmax_code: The 256 levels of such scales.
        absmax_offset: What is added to such scales.

    Returns:
        `[..., J]`, of the type of x.
    """
    scales = (absmax_8bit, absmax_code, absmax_offset)
    few = x.numel() <= MOST_ROWS * shape[1] and x.dtype in (torch.bfloat16, torch.float16)
    if x.device.type != "cuda" or not few or shape[1] % block_size or packed.dtype != torch.uint8:
        gemm = torch.ops.bitsandbytes.gemm_4bit.default
        out: torch.Tensor = gemm(x, packed, shape, absmax, block_size, quantization_type, bias, *scales)
        return out
    from efficientllm.serving.packed_matrix_vector import levels
    from efficientllm.serving.packed_product_kernels import launch

    out = x.new_empty(*x.shape[:-1], shape[0])
    table = levels(quantization_type, x.device)
    launch(x.reshape(-1, shape[1]), packed, absmax, scales, table, block_size, bias, out.view(-1, shape[0]))
    return out


@packed_product.register_fake
def _(x: torch.Tensor, packed: torch.Tensor, shape: Sequence[int], *rest: Any) -> torch.Tensor:
    del packed, rest
    return x.new_empty(*x.shape[:-1], shape[0])
