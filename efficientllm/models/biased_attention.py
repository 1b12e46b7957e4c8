"""Causal attention with a learned bias by distance, on a GPU: no tensor of T x T scores or biases exists.

The forward pass is FlexAttention (Dong et al. 2024, arXiv 2412.05496) with the bias as a score modifier. Its own
gradient for a captured tensor would add every score's share atomically to the same few numbers; here the bias' gradient
is computed from the band of scores in which it varies.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

_BLOCK = 128


def biased_attention(
    q_bhtd: torch.Tensor,
    k_bktd: torch.Tensor,
    v_bkte: torch.Tensor,
    bias_hp: torch.Tensor,
    blocks: Any,
    scale: float,
) -> torch.Tensor:
    """Computes softmax(scale Q K^T + bias by distance) V, causally.

    Args:
        q_bhtd: Queries.
        k_bktd: Keys, with K dividing H.
        v_bkte: Values.
        bias_hp: Bias of each head by distance; distances of P - 1 and more take the last.
        blocks: `causal_blocks` of this length.
        scale: Factor of the scores.

    Returns:
        Attention output `[B, H, T, E]`.
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    table = bias_hp.detach()
    last = bias_hp.shape[1] - 1

    def add_bias(score: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        del batch
        return score + table[head, (query - key).clamp(min=0, max=last)]

    plain = cast(Callable[..., Any], flex_attention)
    attention = plain if torch.compiler.is_compiling() else _compiled_flex_attention()
    out, auxiliary = attention(
        q_bhtd, k_bktd, v_bkte, score_mod=add_bias, block_mask=blocks, scale=scale, enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    with_gradient: torch.Tensor = BiasGradient.apply(
        out, bias_hp, q_bhtd.detach(), k_bktd.detach(), v_bkte.detach(), auxiliary.lse.detach(), scale
    )
    return with_gradient


class BiasGradient(torch.autograd.Function):
    """Passes the attention's output on unchanged, and gives the bias its gradient."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        out: torch.Tensor,
        bias_hp: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_sum_exp_bht: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(out, bias_hp, q, k, v, log_sum_exp_bht)
        ctx.scale = scale  # type: ignore[attr-defined]
        return out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        out, bias_hp, q, k, v, log_sum_exp = ctx.saved_tensors
        bias_gradient = None
        if ctx.needs_input_grad[1]:
            bias_gradient = banded_bias_gradient(q, k, v, bias_hp, out, log_sum_exp, gradient, ctx.scale)
        return gradient, bias_gradient, None, None, None, None, None


def banded_bias_gradient(
    q_bhtd: torch.Tensor,
    k_bktd: torch.Tensor,
    v_bkte: torch.Tensor,
    bias_hp: torch.Tensor,
    out_bhte: torch.Tensor,
    log_sum_exp_bht: torch.Tensor,
    gradient_bhte: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Gradient of the bias, `[H, P]`, from the scores at distances below P - 1.

    With probabilities p and g = dO V^T, a score's gradient is p (g - sum_s p g); a distance's is the sum along its
    diagonal. Over a query's keys these sum to zero, so the last column, which all larger distances share, is minus the
    sum of the others.
    """
    batch, heads, length, _ = q_bhtd.shape
    key_heads, band = k_bktd.shape[1], bias_hp.shape[1] - 1
    reach = -(-band // _BLOCK) * _BLOCK
    missing = -length % _BLOCK
    blocks = (length + missing) // _BLOCK

    def queries(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 0, missing))
        return padded.view(batch, key_heads, heads // key_heads, blocks, _BLOCK, x.shape[-1])

    def keys(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 0, reach, missing))
        return padded.unfold(2, reach + _BLOCK, _BLOCK).unsqueeze(2)  # [B, K, 1, Z, width, reach + block]

    inner = (gradient_bhte.float() * out_bhte.float()).sum(dim=-1, keepdim=True)
    scores = (queries(q_bhtd) @ keys(k_bktd)).float() * scale
    upstream = (queries(gradient_bhte.to(v_bkte.dtype)) @ keys(v_bkte)).float()
    rows = torch.arange(_BLOCK, device=q_bhtd.device)
    distance = rows[:, None] + reach - torch.arange(reach + _BLOCK, device=q_bhtd.device)
    first = torch.arange(blocks, device=q_bhtd.device)[:, None, None] * _BLOCK + rows[:, None] - distance
    visible = (distance >= 0) & (distance < band) & (first >= 0)
    bias = bias_hp.float()[:, distance.clamp(0, band)].view(1, key_heads, -1, 1, *distance.shape)
    probability = torch.exp((scores + bias - queries(log_sum_exp_bht.unsqueeze(-1))).masked_fill(~visible, -torch.inf))
    by_place = (probability * (upstream - queries(inner))).sum(dim=(0, 3)).view(heads, -1)
    gradient = torch.zeros(heads, band + 1, device=q_bhtd.device)
    gradient = gradient.index_add(1, distance.clamp(0, band).flatten(), by_place)
    gradient[:, band] = -gradient[:, :band].sum(dim=1)
    return gradient.to(bias_hp.dtype)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention, compiled: uncompiled it would write out all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=8)
def causal_blocks(length: int, device: torch.device) -> Any:
    """Builds FlexAttention's block mask of a causal pass over `length` tokens; the last few are kept."""
    from torch.nn.attention.flex_attention import create_block_mask

    def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
        del batch, head
        return query >= key

    return create_block_mask(causal, None, None, length, length, device=str(device))
