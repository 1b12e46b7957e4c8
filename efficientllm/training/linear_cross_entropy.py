"""Output head and cross-entropy in one, without holding the logits.

Chunk by chunk of tokens, the logits are computed, turned into the loss and at once into their gradient, and dropped: at
a vocabulary of 151,936 and 8,192 tokens they would take 2.5 GB in 16 bits, and twice that for each float32 copy that
softmax and its gradient make. The idea is that of Liger-Kernel (Hsu et al. 2024, arXiv 2410.10989, section 3.2).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHUNK_BYTES = 2**30


def linear_cross_entropy(
    hidden_nc: torch.Tensor,
    weight_vc: torch.Tensor,
    labels_n: torch.Tensor,
    *,
    ignored: int,
    chunk: int | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of `hidden W^T` against labels; gradients flow to the hidden states and the weight.

    Products are computed in the autocast type where there is one, softmax and loss in float32.

    Args:
        hidden_nc: Hidden states.
        weight_vc: The output head's matrix.
        labels_n: Token ids; `ignored` where there is no loss.
        ignored: The label without loss.
        chunk: Tokens whose logits exist at a time; by default so many that they take 1 GiB in float32.

    Returns:
        The mean over labels that are not ignored; not a number where all are.
    """
    rows = chunk or max(1, _CHUNK_BYTES // (4 * weight_vc.shape[0]))
    device = hidden_nc.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_nc.dtype
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden_nc, weight_vc, labels_n, ignored, rows, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        ignored: int,
        rows: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        count = (labels != ignored).sum()
        matrix = weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), device=hidden.device)
        step = _compiled_step() if hidden.device.type == "cuda" else _step
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows].to(dtype)
                loss, gradient = step(F.linear(part, matrix), labels[start : start + rows], count, ignored)
                total += loss
                if hidden_gradient is not None:
                    hidden_gradient[start : start + rows] = gradient @ matrix
                if weight_gradient is not None:
                    _accumulate(weight_gradient, gradient.t(), part)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient * upstream
        if weight_gradient is not None:
            weight_gradient = (weight_gradient * upstream).to(ctx.weight_dtype)
        return hidden_gradient, weight_gradient, None, None, None, None


def _step(
    logits_nv: torch.Tensor, labels_n: torch.Tensor, count: torch.Tensor, ignored: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a chunk's share of the mean loss, and its gradient (softmax - one-hot) / count in the logits' type."""
    real = labels_n != ignored
    index = labels_n.clamp_min(0).unsqueeze(-1)
    scores = logits_nv.float()
    log_sum = scores.logsumexp(dim=-1, keepdim=True)
    picked = scores.gather(-1, index)
    loss = torch.where(real, (log_sum - picked).squeeze(-1), 0.0).sum() / count
    one_hot = (torch.arange(scores.shape[1], device=scores.device) == index).float()
    gradient = ((scores - log_sum).exp() - one_hot) * (real / count).unsqueeze(-1)
    return loss, gradient.to(logits_nv.dtype)


@functools.cache
def _compiled_step() -> Callable[..., Any]:
    """The same in few passes over the logits."""
    return torch.compile(_step, dynamic=False)


def _accumulate(total_vc: torch.Tensor, gradient_vn: torch.Tensor, hidden_nc: torch.Tensor) -> None:
    """Adds a product to a float32 sum; on a GPU the addition happens inside the product's kernel."""
    if gradient_vn.dtype == torch.float32:
        total_vc.addmm_(gradient_vn, hidden_nc)
    elif total_vc.device.type == "cuda":
        torch.addmm(total_vc, gradient_vn, hidden_nc, out_dtype=torch.float32, out=total_vc)
    else:
        total_vc.add_(gradient_vn @ hidden_nc)
