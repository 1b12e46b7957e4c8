"""Products of matrices of 4-bit weights with one vector, as an operator: decoding a single sequence by a quantized model."""

import functools
from collections.abc import Sequence

import torch

from efficientllm.serving import matrix_vector


# an operator of its own, which the compiler leaves whole
@torch.library.custom_op("efficientllm::packed_matrix_vector", mutates_args=())
def packed_matrix_vector(
    row: torch.Tensor,
    packed: Sequence[torch.Tensor],
    sizes: Sequence[int],
    absmax: Sequence[torch.Tensor],
    absmax_8bit: Sequence[torch.Tensor],
    absmax_code: Sequence[torch.Tensor],
    absmax_offset: Sequence[torch.Tensor],
    block_size: int,
    quantization_type: str,
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    """Computes W x for each matrix, side by side, or silu(W_0 x) * W_1 x, of weights as bitsandbytes packs them.

    A weight is its block's scale times the level that its 4 bits name (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, sections
    2 and 3). On a GPU each number is rounded once, at the end; sums are in float32.

    Args:
        row: The vector x `[1, C]`.
        packed: One to three matrices W `[J, C]`, two weights a byte, `[J C / 2, 1]` in uint8; all as the first, but for J.
        sizes: J of each.
        absmax: Each block's scale `[J C / block_size]`, or, of scales in 8 bits, the scale of each 256 of them.
        absmax_8bit: Scales in 8 bits (double quantization), or nothing.
        absmax_code: The 256 levels of such scales.
        absmax_offset: What is added to such scales.
        block_size: Weights that share a scale; divides C.
        quantization_type: `nf4` or `fp4`.
        gain: RMSNorm's weight `[C]`, where x is to be normalized first.
        epsilon: RMSNorm's.
        addend: What is added to the result, of its size and type.
        gated: Whether there are two matrices, and SwiGLU's gate between their products.

    Returns:
        `[1, sum of J]`, or `[1, J]` of two gated matrices, of the vector's type.
    """
    scales = (absmax, absmax_8bit, absmax_code, absmax_offset)
    if row.device.type == "cuda":
        from efficientllm.serving.packed_matrix_vector_kernels import launch

        out = row.new_empty(1, sizes[0] if gated else sum(sizes))
        launch(
            row.reshape(-1), packed, sizes, *scales, levels(quantization_type, row.device), block_size, out,
            gain=gain, epsilon=epsilon, addend=addend, gated=gated,
        )  # fmt: skip
        return out
    double = zip(absmax_8bit, absmax_code, absmax_offset, strict=True) if absmax_8bit else [None] * len(packed)
    weights = [
        unpacked(matrix, scale, nested, block_size, quantization_type).view(-1, row.shape[1]).to(row.dtype)
        for matrix, scale, nested in zip(packed, absmax, double, strict=True)
    ]
    return matrix_vector.by_pytorch(row, weights, gain, epsilon, addend, gated)


@packed_matrix_vector.register_fake
def _(
    row: torch.Tensor,
    packed: Sequence[torch.Tensor],
    sizes: Sequence[int],
    absmax: Sequence[torch.Tensor],
    absmax_8bit: Sequence[torch.Tensor],
    absmax_code: Sequence[torch.Tensor],
    absmax_offset: Sequence[torch.Tensor],
    block_size: int,
    quantization_type: str,
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    del packed, absmax, absmax_8bit, absmax_code, absmax_offset, block_size, quantization_type, gain, epsilon, addend
    return row.new_empty(1, sizes[0] if gated else sum(sizes))


def unpacked(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    block_size: int,
    quantization_type: str,
) -> torch.Tensor:
    """Writes one matrix' weights out in float32 `[J C]`.

    Args:
        packed: As the arguments of `packed_matrix_vector`, of one matrix.
        absmax: Its scales, or the scales of its scales.
        nested: Its scales in 8 bits, their levels and what is added to them; None without double quantization.
        block_size: Weights that share a scale.
        quantization_type: `nf4` or `fp4`.
    """
    scale = absmax
    if nested is not None:
        scales_8bit, code, offset = nested
        scale = code[scales_8bit.int()] * absmax.repeat_interleave(256)[: scales_8bit.numel()] + offset
    halves = torch.stack((packed.reshape(-1) >> 4, packed.reshape(-1) & 15), dim=-1).reshape(-1, block_size)
    return (levels(quantization_type, packed.device)[halves.int()] * scale[:, None]).reshape(-1)


@functools.cache
def levels(quantization_type: str, device: torch.device) -> torch.Tensor:
    """The 16 values that 4 bits name, in float32."""
    from bitsandbytes.functional import get_4bit_type

    found: torch.Tensor = get_4bit_type(quantization_type, device=str(device)).to(torch.float32)
    return found
