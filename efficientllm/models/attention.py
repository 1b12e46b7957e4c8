"""Softmax attention with shared key and value heads: the common part of the mixers `mha`, `gqa` and `mqa`.

Vaswani et al. 2017, arXiv 1706.03762, equation 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245. Query head h
reads key-value head h // (H / K).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import LayerState, Mixer, Rotation, Span


def rotate(x_bthd: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates pairs (i, i + D / 2) of each head: [a cos - b sin, b cos + a sin], Llama's layout of RoPE.

    Args:
        x_bthd: Queries or keys.
        rotation: Cosines and signed sines, broadcastable to `[B, T, H, D]`.
    """
    cosine, signed_sine = rotation
    return torch.addcmul(x_bthd * cosine, x_bthd.roll(x_bthd.shape[-1] // 2, dims=-1), signed_sine)


def attend(q_bhtd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, span: Span) -> torch.Tensor:
    """Computes softmax(Q K^T / sqrt(D) + mask) V with PyTorch's fused kernels.

    Args:
        q_bhtd: Queries.
        k_bksd: Keys, with K dividing H.
        v_bksd: Values.
        span: Supplies the causal flag and the mask.

    Returns:
        Attention output `[B, H, T, D]`.
    """
    batch, heads, length, width = q_bhtd.shape
    groups = heads // k_bksd.shape[1]
    mask = span.attention_mask
    if groups == 1:
        return F.scaled_dot_product_attention(q_bhtd, k_bksd, v_bksd, attn_mask=mask, is_causal=span.causal)
    if length == 1:
        # one query per head: the queries of a group stand in as the sequence, and nothing is copied on any kernel
        if mask is not None and mask.shape[1] == heads:
            mask = mask.view(mask.shape[0], -1, groups, mask.shape[-1])
        folded = q_bhtd.reshape(batch, -1, groups, width)
        out = F.scaled_dot_product_attention(folded, k_bksd, v_bksd, attn_mask=mask)
        return out.reshape(batch, heads, 1, width)
    if q_bhtd.device.type == "cuda" and (mask is not None or q_bhtd.dtype == torch.float32):
        # CUDA's grouped kernel is the flash kernel, which takes neither masks nor float32; without it, PyTorch would
        # fall back to writing out the scores of every head
        k_bksd, v_bksd = (x.repeat_interleave(groups, dim=1) for x in (k_bksd, v_bksd))
        return F.scaled_dot_product_attention(q_bhtd, k_bksd, v_bksd, attn_mask=mask, is_causal=span.causal)
    return F.scaled_dot_product_attention(
        q_bhtd, k_bksd, v_bksd, attn_mask=mask, is_causal=span.causal, enable_gqa=True
    )


class GroupedAttention(Mixer):
    """Causal self-attention with `key_value_heads` key and value heads.

    Per token: 2 C D (2 H + 2 K) FLOPs for the projections, 4 H D per key seen; the cache grows by 2 K D numbers.

    Args:
        config: The decoder's configuration.
        key_value_heads: K, a divisor of the number of heads.

    Raises:
        ParameterError: The heads do not divide the hidden size, or the key-value heads the heads.
    """

    def __init__(self, config: DecoderConfig, key_value_heads: int) -> None:
        super().__init__(config)
        if config.hidden_size % config.heads:
            raise ParameterError(f"hidden_size {config.hidden_size} is not a multiple of heads {config.heads}")
        if config.heads % key_value_heads:
            raise ParameterError(f"heads {config.heads} is not a multiple of key_value_heads {key_value_heads}")
        self.heads, self.key_value_heads, self.head_dim = config.heads, key_value_heads, config.head_dim
        self.rotary_dim = config.head_dim
        width, shared = config.hidden_size, key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Attends from each token of `hidden_btc` to itself and to all earlier ones, those of the state included."""
        batch, length, width = hidden_btc.shape
        q = self.q_proj(hidden_btc).view(batch, length, self.heads, self.head_dim)
        k = self.k_proj(hidden_btc).view(batch, length, self.key_value_heads, self.head_dim)
        v = self.v_proj(hidden_btc).view(batch, length, self.key_value_heads, self.head_dim)
        if span.rotation is not None:
            q, k = rotate(q, span.rotation), rotate(k, span.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if state is not None:
            state["keys"][:, :, span.start : span.end] = k
            state["values"][:, :, span.start : span.end] = v
            k, v = state["keys"][:, :, : span.end], state["values"][:, :, : span.end]
        out = attend(q, k, v, span)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, width))

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
        return 4 * width * (width + self.key_value_heads * self.head_dim) + 4 * width * context

    def cache_elements_per_token(self) -> int:
        """Numbers kept per token: a key and a value for each key-value head."""
        return 2 * self.key_value_heads * self.head_dim
