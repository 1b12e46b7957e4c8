"""Multi-head latent attention (DeepSeek-V2, Liu et al. 2024, arXiv 2405.04434, section 2.1, equations 9 to 19).

Keys and values are linear maps of one small latent vector per token; beside it stands one key that all heads share and
that alone carries the rotary position (equations 14 to 17). Only the latent and that key are cached. In decoding the
up-projections are absorbed into queries and outputs, so that attention runs over the latents themselves, as multi-query
attention does with one wide head.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.models.attention import attend, rotate
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import LayerState, Mixer, Span
from efficientllm.models.norms import RMSNorm


class LatentAttentionOptions(Section):
    """Widths, named as in DeepSeek's configurations; None takes DeepSeek-V2's multiple of the head size D."""

    kv_lora_rank: int | None = Field(default=None, ge=1, description="width of the cached latent; 4 D")
    q_lora_rank: int | None = Field(default=None, ge=1, description="width of the queries' latent; None for no latent")
    qk_nope_head_dim: int | None = Field(default=None, ge=1, description="part of a head without position; D")
    qk_rope_head_dim: int | None = Field(default=None, ge=2, description="part of a head with rotary position; D / 2")
    v_head_dim: int | None = Field(default=None, ge=1, description="width of a head's values; D")


class MultiHeadLatentAttention(Mixer):
    """Attention over compressed keys and values."""

    Options = LatentAttentionOptions
    reference_kernel = "softmax of all scores"
    fast_kernel = "fused attention"
    decodes_by_products = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        options, width = self.options, config.hidden_size
        self.heads = config.heads
        self.latent_dim = options.kv_lora_rank or 4 * config.head_dim
        self.plain_dim = options.qk_nope_head_dim or config.head_dim
        self.rotary_dim = options.qk_rope_head_dim or config.head_dim // 2
        self.value_dim = options.v_head_dim or config.head_dim
        query_dim = self.plain_dim + self.rotary_dim
        self.decoding_group = (self.heads, self.latent_dim + self.rotary_dim)
        self.scale = 1 / math.sqrt(query_dim)
        self.q_a_proj, self.q_a_norm, query_input = None, None, width
        if options.q_lora_rank is not None:
            self.q_a_proj = nn.Linear(width, options.q_lora_rank, bias=False)
            self.q_a_norm = RMSNorm(options.q_lora_rank)
            query_input = options.q_lora_rank
        self.q_proj = nn.Linear(query_input, self.heads * query_dim, bias=False)
        self.kv_a_proj = nn.Linear(width, self.latent_dim + self.rotary_dim, bias=False)
        self.kv_a_norm = RMSNorm(self.latent_dim)
        self.kv_b_proj = nn.Linear(self.latent_dim, self.heads * (self.plain_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value_dim, width, bias=False)

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Attends from each token of `hidden_btc` to itself and to all earlier ones, those of the state included."""
        batch, length, _ = hidden_btc.shape
        query_input = hidden_btc
        if self.q_a_proj is not None and self.q_a_norm is not None:
            query_input = self.q_a_norm(self.q_a_proj(hidden_btc))
        q = self.q_proj(query_input).view(batch, length, self.heads, -1)
        q_plain, q_rotary = q.split([self.plain_dim, self.rotary_dim], dim=-1)
        latent, k_rotary = self.kv_a_proj(hidden_btc).split([self.latent_dim, self.rotary_dim], dim=-1)
        latent, k_rotary = self.kv_a_norm(latent), k_rotary.unsqueeze(2)
        if span.rotation is not None:
            q_rotary, k_rotary = rotate(q_rotary, span.rotation), rotate(k_rotary, span.rotation)
        if state is not None:
            # in one write: the compiler makes two into copies of the whole cache
            state["latent"][:, span.start : span.end] = torch.cat((latent, k_rotary.squeeze(2)), dim=-1)
        if state is None or span.start == 0:
            out = self._expanded(q_plain, q_rotary, latent, k_rotary, span)
        else:
            out = self._absorbed(q_plain, q_rotary, state["latent"][:, : span.keys], span)
        return self.o_proj(out.reshape(batch, length, -1))

    def _expanded(
        self,
        q_plain: torch.Tensor,
        q_rotary: torch.Tensor,
        latent_btl: torch.Tensor,
        k_rotary: torch.Tensor,
        span: Span,
    ) -> torch.Tensor:
        """Attention over the keys and values of this pass, `[B, T, H, E]`."""
        batch, length, _ = latent_btl.shape
        up = self.kv_b_proj(latent_btl).view(batch, length, self.heads, -1)
        k_plain, v = up.split([self.plain_dim, self.value_dim], dim=-1)
        q = torch.cat((q_plain, q_rotary), dim=-1)
        k = torch.cat((k_plain, k_rotary.expand(-1, -1, self.heads, -1)), dim=-1)
        fast = self.runs_fast(latent_btl.device)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), span, scale=self.scale, fast=fast)
        return out.transpose(1, 2)

    def _absorbed(
        self, q_plain: torch.Tensor, q_rotary: torch.Tensor, cached_bsl: torch.Tensor, span: Span
    ) -> torch.Tensor:
        """The same over all cached tokens, without expanding them: q W_k^T on one side, (p latent) W_v on the other."""
        weight = self.kv_b_proj.weight
        if (
            type(self.kv_b_proj) is not nn.Linear
        ):  # adapted or packed, it is more than its weight, or the weight no matrix
            weight = self.kv_b_proj(torch.eye(self.latent_dim, dtype=cached_bsl.dtype, device=cached_bsl.device)).T
        up_hdl = weight.reshape(self.heads, self.plain_dim + self.value_dim, self.latent_dim)
        k_up, v_up = up_hdl.split([self.plain_dim, self.value_dim], dim=1)
        q = torch.cat((torch.einsum("bthd,hdl->bthl", q_plain, k_up), q_rotary), dim=-1).transpose(1, 2)
        keys = cached_bsl.unsqueeze(1)
        fast = self.runs_fast(cached_bsl.device)
        out_bhtl = attend(q, keys, keys[..., : self.latent_dim], span, scale=self.scale, fast=fast)
        return torch.einsum("bhtl,hel->bthe", out_bhtl, v_up)

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates each token's latent and shared rotary key side by side, `[B, max_length, L + R]`."""
        shape = (batch_size, max_length, self.latent_dim + self.rotary_dim)
        return {"latent": torch.zeros(shape, dtype=dtype, device=device)}

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the output projection's weight."""
        return [self.o_proj.weight]

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token in training: the projections, scores and weighted values over `context` keys."""
        matrices = [self.q_proj, self.kv_a_proj, self.kv_b_proj, self.o_proj]
        if self.q_a_proj is not None:
            matrices.append(self.q_a_proj)
        scored = self.heads * (self.plain_dim + self.rotary_dim + self.value_dim)
        return 2 * sum(matrix.weight.numel() for matrix in matrices) + 2 * scored * context

    def cache_elements_per_token(self) -> int:
        """Numbers kept per token: the latent and the shared rotary key."""
        return self.latent_dim + self.rotary_dim

    def applies_bias(self, device: torch.device) -> bool:
        """On a GPU the fused kernel takes a bias by distance."""
        return device.type == "cuda" and self.runs_fast(device)


COMPONENT = MultiHeadLatentAttention
