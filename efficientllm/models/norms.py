"""RMSNorm with a backward pass of few memory passes on a CPU.

PyTorch has a fused RMSNorm on GPUs only; on a CPU its autograd runs a dozen elementwise operations, a tenth of a small
model's training step.
"""

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * w (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    Args:
        width: Size of the last dimension.
        epsilon: What is added to the mean square.
    """

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__(width, eps=epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalizes the last dimension."""
        if x.device.type == "cpu" and x.dtype == torch.float32 == self.weight.dtype:
            normalized: torch.Tensor = _CPUNorm.apply(x, self.weight, self.eps)
            return normalized
        # one type for both, else PyTorch leaves its fused kernel
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) * w + b (Ba et al. 2016, arXiv 1607.06450).

    Args:
        width: Size of the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)


class _CPUNorm(torch.autograd.Function):
    """RMSNorm whose gradient comes from LayerNorm's fused kernel.

    With r = 1 / rms, u = x r and h = w g, LayerNorm's gradient at mean 0 and deviation 1 / r is
    r (h - mean(h) - u mean(h u)); RMSNorm's lacks the term mean(h), which is added back. The weight's gradient,
    sum(g u), is the same.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        reciprocal = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, reciprocal)
        return (x * reciprocal).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        x, weight, reciprocal = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        gradient = gradient.contiguous()
        x_gradient, weight_gradient, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x.contiguous(), weight.shape, torch.zeros_like(reciprocal), reciprocal, weight, None, wanted
        )
        if wanted[0]:
            missing = torch.mv(gradient.view(-1, x.shape[-1]), weight).view_as(reciprocal).div_(x.shape[-1])
            x_gradient.add_(missing.mul_(reciprocal))
        return x_gradient, weight_gradient, None
