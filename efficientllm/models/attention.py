"""Softmax attention with shared key and value heads: the common part of the attention mixers.

Vaswani et al. 2017, arXiv 1706.03762, equation 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245. Query head h
reads key-value head h // (H / K).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoding_attention import decoding_attention, has_own_kernel
from efficientllm.models.interfaces import LayerState, Mixer, Rotation, Span
from efficientllm.models.norms import RMSNorm

_LEAST_BIASED_WIDTH = 16  # of a head, below which FlexAttention has no kernel


def rotate(x_bthd: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates pairs (i, i + R / 2) of each head's first R numbers: [a cos - b sin, b cos + a sin], Llama's RoPE layout.

    Args:
        x_bthd: Queries or keys.
        rotation: Cosines and signed sines, broadcastable to `[B, T, H, R]`; R = D unless the rotation is partial.
    """
    cosine, signed_sine = rotation
    width = cosine.shape[-1]
    if width < x_bthd.shape[-1]:
        rotated = rotate(x_bthd[..., :width], rotation)
        return torch.cat((rotated, x_bthd[..., width:]), dim=-1)
    return torch.addcmul(x_bthd * cosine, x_bthd.roll(width // 2, dims=-1), signed_sine)


def attend(
    q_bhtd: torch.Tensor,
    k_bksd: torch.Tensor,
    v_bkse: torch.Tensor,
    span: Span,
    *,
    scale: float | None = None,
    fast: bool = True,
) -> torch.Tensor:
    """Computes softmax(scale Q K^T + mask) V.

    Args:
        q_bhtd: Queries.
        k_bksd: Keys, with K dividing H.
        v_bkse: Values, whose width E may differ from that of the keys.
        span: Supplies the causal flag, the mask, and the bias by distance.
        scale: Factor of the scores; 1 / sqrt(D) by default.
        fast: Whether PyTorch's fused kernels compute it, or plain matrix products and a softmax.

    Returns:
        Attention output `[B, H, T, E]`.
    """
    batch, heads, length, _ = q_bhtd.shape
    groups = heads // k_bksd.shape[1]
    mask = span.attention_mask
    if span.bias_by_distance_hp is not None:
        from efficientllm.models.biased_attention import biased_attention

        scale = scale or 1 / math.sqrt(q_bhtd.shape[-1])
        return biased_attention(q_bhtd, k_bksd, v_bkse, span.bias_by_distance_hp, span.causal_blocks, scale)
    if not fast:
        k_bksd, v_bkse = (x.repeat_interleave(groups, dim=1) for x in (k_bksd, v_bkse))
        return _plain_attention(q_bhtd, k_bksd, v_bkse, mask, scale, causal=span.causal)
    if length == 1:
        # one query per head: the queries of a group stand in as the sequence, and nothing is copied on any kernel
        if mask is not None and mask.shape[1] == heads:
            mask = mask.view(mask.shape[0], -1, groups, mask.shape[-1])
        # the token's own dimension is left out: compiled code gives one of length 1 any stride, and kernels refuse some
        folded = q_bhtd[:, :, 0].unflatten(1, (-1, groups))
        if decodes_by_own_kernel(q_bhtd.device, groups, k_bksd, v_bkse):
            out = decoding_attention(folded, k_bksd, v_bkse, mask, scale)
        elif (mask is not None or k_bksd.shape[-1] != v_bkse.shape[-1]) and decodes_by_products(q_bhtd.device):
            out = single_query_attention(folded, k_bksd, v_bkse, mask, scale)
        else:
            out = F.scaled_dot_product_attention(folded, k_bksd, v_bkse, attn_mask=mask, scale=scale)
        return out.reshape(batch, heads, 1, -1)
    if groups > 1 and q_bhtd.device.type == "cuda" and (mask is not None or q_bhtd.dtype == torch.float32):
        # CUDA's grouped kernels take neither masks nor float32; without them, PyTorch would fall back to writing out
        # the scores of every head
        k_bksd, v_bkse = (x.repeat_interleave(groups, dim=1) for x in (k_bksd, v_bkse))
        groups = 1
    return F.scaled_dot_product_attention(
        q_bhtd, k_bksd, v_bkse, attn_mask=mask, is_causal=span.causal, scale=scale, enable_gqa=groups > 1
    )


def decodes_by_own_kernel(device: torch.device, queries: int, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether one query is attended to by this project's kernel for that, which has no gradient."""
    width = max(keys.shape[-1], values.shape[-1])
    return not torch.is_grad_enabled() and has_own_kernel(device, queries, width)


def decodes_by_products(device: torch.device) -> bool:
    """Whether one query that a mask meets, or values of another width than the keys', is attention by two matrix products.

    The one fused kernel of a GPU that takes them lets a single multiprocessor read all the keys and values of a head. The
    scores of one query are small.
    """
    return device.type == "cuda"


def _plain_attention(
    q_bhtd: torch.Tensor,
    k_bhsd: torch.Tensor,
    v_bhse: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attention as its equation reads; it holds the scores `[B, H, T, S]`."""
    scores = q_bhtd @ k_bhsd.transpose(-1, -2) * (scale or 1 / math.sqrt(q_bhtd.shape[-1]))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return _masked(scores, mask).softmax(dim=-1, dtype=torch.float32).to(v_bhse.dtype) @ v_bhse


def _masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Hides what a mask of truth values does not show, or adds one of numbers."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def single_query_attention(
    q_bkgd: torch.Tensor,
    k_bksd: torch.Tensor,
    v_bkse: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Computes softmax(scale Q K^T + mask) V for one query of each head, and divides by the sum at the end.

    For a softmax between two products the compiler may put PyTorch's fused attention: on a GPU the very kernel that this
    function is there to avoid.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bkse: Values, whose width E may differ from that of the keys.
        mask: Broadcastable to `[B, K, G, S]`: True where a key is seen, or what is added to the scores; None for neither.
        scale: Factor of the scores; 1 / sqrt(D) by default.

    Returns:
        Attention output `[B, K, G, E]`.
    """
    scores = (q_bkgd @ k_bksd.transpose(-1, -2)).float() * (scale or 1 / math.sqrt(q_bkgd.shape[-1]))
    scores = _masked(scores, mask)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    summed = weights.to(v_bkse.dtype) @ v_bkse
    return (summed / weights.sum(dim=-1, keepdim=True)).to(v_bkse.dtype)


class GroupedAttention(Mixer):
    """Causal self-attention with `key_value_heads` key and value heads.

    Per token: 2 C D (2 H + 2 K) FLOPs for the projections, 4 H D per key seen; the cache grows by 2 K D numbers.

    Args:
        config: The decoder's configuration.
        key_value_heads: K, a divisor of the number of heads.
        bias: Whether the projections of queries, keys and values have biases.
        output_bias: Whether the output projection has one; by default as the others.
        head_dim: Width of a head; by default the hidden size's share.
        rotary_fraction: Share of each head that a positional encoding may rotate.
        qk_norm: Whether each head's query and key are normalized (Henry et al. 2020, arXiv 2010.04245, with RMSNorm).

    Raises:
        ParameterError: The heads do not divide the hidden size, or the key-value heads the heads.
    """

    reference_kernel = "softmax of all scores"
    fast_kernel = "fused attention"

    def __init__(
        self,
        config: DecoderConfig,
        key_value_heads: int,
        *,
        bias: bool = False,
        output_bias: bool | None = None,
        head_dim: int | None = None,
        rotary_fraction: float = 1.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(config)
        if head_dim is None and config.hidden_size % config.heads:
            raise ParameterError(f"hidden_size {config.hidden_size} is not a multiple of heads {config.heads}")
        if config.heads % key_value_heads:
            raise ParameterError(f"heads {config.heads} is not a multiple of key_value_heads {key_value_heads}")
        self.heads, self.key_value_heads, self.head_dim = config.heads, key_value_heads, head_dim or config.head_dim
        self.rotary_dim = int(self.head_dim * rotary_fraction)
        self.decoding_group = (self.heads // key_value_heads, self.head_dim)
        self.q_norm = RMSNorm(self.head_dim, config.norm_epsilon) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_epsilon) if qk_norm else None
        width, shared = self.heads * self.head_dim, key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=bias if output_bias is None else output_bias)

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Attends from each token of `hidden_btc` to itself and to all earlier ones, those of the state included."""
        batch, length, _ = hidden_btc.shape
        q = self.q_proj(hidden_btc).view(batch, length, self.heads, self.head_dim)
        k = self.k_proj(hidden_btc).view(batch, length, self.key_value_heads, self.head_dim)
        v = self.v_proj(hidden_btc).view(batch, length, self.key_value_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if span.rotation is not None:
            q, k = rotate(q, span.rotation), rotate(k, span.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if state is not None:
            state["keys"][:, :, span.start : span.end] = k
            state["values"][:, :, span.start : span.end] = v
            k, v = state["keys"][:, :, : span.keys], state["values"][:, :, : span.keys]
        out = attend(q, k, v, span, fast=self.runs_fast(hidden_btc.device))
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates keys and values `[B, K, max_length, D]`."""
        shape = (batch_size, self.key_value_heads, max_length, self.head_dim)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("keys", "values")}

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the output projection's weight."""
        return [self.o_proj.weight]

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token: four projections, scores and weighted values over `context` keys."""
        width = self.heads * self.head_dim
        projections = 4 * self.q_proj.in_features * (width + self.key_value_heads * self.head_dim)
        return projections + 4 * width * context

    def cache_elements_per_token(self) -> int:
        """Numbers kept per token: a key and a value for each key-value head."""
        return 2 * self.key_value_heads * self.head_dim

    def applies_bias(self, device: torch.device) -> bool:
        """On a GPU the fused kernel takes the bias, for heads of a width; on a CPU PyTorch's has no gradient for it."""
        return device.type == "cuda" and self.head_dim >= _LEAST_BIASED_WIDTH and self.runs_fast(device)
