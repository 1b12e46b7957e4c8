"""Products of matrices with one vector, as an operator: what decoding a single sequence mostly consists of."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

MOST_MATRICES = 3
"""Matrices that one call takes."""


# an operator of its own, which the compiler leaves whole
@torch.library.custom_op("efficientllm::matrix_vector", mutates_args=())
def matrix_vector(
    row: torch.Tensor,
    weights: Sequence[torch.Tensor],
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    """Computes W x for each matrix, side by side, or silu(W_0 x) * W_1 x; without gradients.

    On a GPU each number is rounded once, at the end; sums are in float32.

    Args:
        row: The vector x `[1, C]`.
        weights: One to three contiguous matrices W `[J, C]`, of the vector's type.
        gain: RMSNorm's weight `[C]`, where x is to be normalized first.
        epsilon: RMSNorm's.
        addend: What is added to the result, of its size and type.
        gated: Whether there are two matrices, and SwiGLU's gate between their products.

    Returns:
        `[1, sum of J]`, or `[1, J]` of two gated matrices, of the vector's type.
    """
    if row.device.type == "cuda":
        from efficientllm.serving.matrix_vector_kernels import launch

        out = row.new_empty(1, result_size(weights, gated))
        launch(row.reshape(-1), weights, out, gain=gain, epsilon=epsilon, addend=addend, gated=gated)
        return out
    return by_pytorch(row, weights, gain, epsilon, addend, gated)


@matrix_vector.register_fake
def _(
    row: torch.Tensor,
    weights: Sequence[torch.Tensor],
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    del gain, epsilon, addend
    return row.new_empty(1, result_size(weights, gated))


def by_pytorch(
    row: torch.Tensor,
    weights: Sequence[torch.Tensor],
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
) -> torch.Tensor:
    """Computes the same by PyTorch's operators, which round in between; arguments as `matrix_vector`."""
    x = row if gain is None else F.rms_norm(row, gain.shape, gain.to(row.dtype), epsilon)
    products = [F.linear(x, weight) for weight in weights]
    out = F.silu(products[0]) * products[1] if gated else torch.cat(products, dim=1)
    return out if addend is None else out + addend.reshape(1, -1)


def result_size(weights: Sequence[torch.Tensor], gated: bool) -> int:
    """Numbers that `matrix_vector` returns."""
    return weights[0].shape[0] if gated else sum(weight.shape[0] for weight in weights)
