"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060): a selective state-space model with a scalar decay per head.

One projection gives gate z, inputs x, input and output vectors b and c, and step sizes dt (their figure 6, right); a
short causal convolution and SiLU act on x, b and c; then S_t = exp(dt_t A) S_{t-1} + dt_t x_t b_t^T,
y_t = S_t c_t + D x_t, and W_o norm(y silu(z)). Nothing else knows about positions, and the state does not grow.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import LayerState, Mixer, Span
from efficientllm.models.norms import RMSNorm
from efficientllm.models.state_space import chunked_scan, recurrent_scan, recurrent_step


class Mamba2Options(Section):
    """Parameters of the layer; the defaults are those of the published models."""

    expand: int = Field(default=2, ge=1, description="inner width over hidden size")
    head_dim: int = Field(default=64, ge=1)
    state_size: int = Field(default=128, ge=1)
    groups: int = Field(default=1, ge=1, description="groups of heads that share input and output vectors")
    convolution: int = Field(default=4, ge=2, description="tokens that the short convolution sees")
    chunk: int = Field(default=128, ge=1, description="tokens per chunk of the parallel form")


class Mamba2(Mixer):
    """The Mamba-2 layer.

    Raises:
        ParameterError: The heads do not divide the inner width, or the groups the heads.
    """

    Options = Mamba2Options
    reference_kernel = "token-by-token recurrence"
    fast_kernel = "chunked state-space duality"
    compiles_on_cpu = False  # torch 2.13: the compiled backward pass writes past its buffers, and the process dies

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        options = self.options
        self.inner = options.expand * config.hidden_size
        if self.inner % options.head_dim:
            raise ParameterError(f"the inner width {self.inner} is not a multiple of mixer.head_dim {options.head_dim}")
        self.heads = self.inner // options.head_dim
        if self.heads % options.groups:
            raise ParameterError(f"{self.heads} heads are not a multiple of mixer.groups {options.groups}")
        self.shared = options.groups * options.state_size
        convolved = self.inner + 2 * self.shared
        self.in_proj = nn.Linear(config.hidden_size, self.inner + convolved + self.heads, bias=False)
        self.convolution = nn.Parameter(torch.empty(convolved, options.convolution))
        self.convolution_bias = nn.Parameter(torch.empty(convolved))
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.log_decay_rate = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=False)

    def initialize(self) -> None:
        """Draws decay rates A in [1, 16], step sizes log-uniform in [0.001, 0.1], and the convolution as PyTorch does."""
        bound = 1 / math.sqrt(self.options.convolution)
        nn.init.uniform_(self.convolution, -bound, bound)
        nn.init.uniform_(self.convolution_bias, -bound, bound)
        nn.init.uniform_(self.log_decay_rate, 1, 16).log_()
        step = torch.empty_like(self.step_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_min_(1e-4)
        self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        nn.init.ones_(self.skip)

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Runs the layer over a chunk of tokens, from the state that earlier ones left."""
        batch, length, _ = hidden_btc.shape
        real_bt = span.padding_mask_bt
        if real_bt is not None:
            hidden_btc = hidden_btc * real_bt.unsqueeze(-1)
        convolved = self.inner + 2 * self.shared
        z, mixed, step = self.in_proj(hidden_btc).split([self.inner, convolved, self.heads], dim=-1)
        mixed = F.silu(self._convolve(mixed, state))
        x, b, c = mixed.split([self.inner, self.shared, self.shared], dim=-1)
        x = x.view(batch, length, self.heads, -1)
        b, c = (v.view(batch, length, self.options.groups, -1) for v in (b, c))
        step_bth = F.softplus(step.float() + self.step_bias.float())
        if real_bt is not None:
            step_bth = step_bth * real_bt.unsqueeze(-1)  # a step of size 0 neither decays the state nor adds to it
        log_decay = -self.log_decay_rate.float().exp() * step_bth
        scaled = (x * step_bth.unsqueeze(-1)).to(x.dtype)
        initial = None if state is None else state["state"]
        # autocast would cast the decays; every product below has the type that its inputs ask for
        with torch.autocast(hidden_btc.device.type, enabled=False):
            if length == 1 and initial is not None:
                y, last = recurrent_step(scaled[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], initial)
                y = y.unsqueeze(1)
            elif length > 1 and self.runs_fast(hidden_btc.device):
                y, last = chunked_scan(scaled, log_decay, b, c, initial, chunk=self.options.chunk)
            else:
                y, last = recurrent_scan(scaled, log_decay, b, c, initial)
        if state is not None:
            state["state"].copy_(last)
        y = y.to(x.dtype) + self.skip.to(x.dtype).unsqueeze(-1) * x
        return self.out_proj(self._normalize(y.reshape(batch, length, self.inner) * F.silu(z)))

    def _normalize(self, y_bti: torch.Tensor) -> torch.Tensor:
        """RMSNorm over each group's channels, as in the published implementation."""
        if self.options.groups == 1:
            normalized: torch.Tensor = self.norm(y_bti)
            return normalized
        grouped = y_bti.unflatten(-1, (self.options.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], None, self.norm.eps).flatten(-2) * self.norm.weight

    def _convolve(self, mixed_btd: torch.Tensor, state: LayerState | None) -> torch.Tensor:
        """Causal convolution of each channel over its last tokens.

        A sum of shifted products: a compiler fuses it into one pass, and eager it is no slower than the library's
        depthwise convolution.
        """
        width, length = self.options.convolution, mixed_btd.shape[1]
        if state is None:
            padded = F.pad(mixed_btd, (0, 0, width - 1, 0))
        else:
            padded = torch.cat((state["inputs"], mixed_btd.to(state["inputs"].dtype)), dim=1)
            state["inputs"].copy_(padded[:, length:])
        kernel = self.convolution.to(padded.dtype)
        out = self.convolution_bias.to(padded.dtype) + padded[:, width - 1 :] * kernel[:, -1]
        for shift in range(width - 1):
            out = out + padded[:, shift : shift + length] * kernel[:, shift]
        return out

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates the convolution's last inputs `[B, W - 1, inner + 2 G N]` and the state `[B, H, P, N]`, float32."""
        del max_length
        options = self.options
        inputs = (batch_size, options.convolution - 1, self.inner + 2 * self.shared)
        state = (batch_size, self.heads, options.head_dim, options.state_size)
        return {
            "inputs": torch.zeros(inputs, dtype=dtype, device=device),
            "state": torch.zeros(state, dtype=torch.float32, device=device),
        }

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the output projection's weight."""
        return [self.out_proj.weight]

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token: the two projections, and of the recurrence x b^T and S c, for any context."""
        del context
        projections = 2 * (self.in_proj.weight.numel() + self.out_proj.weight.numel())
        return projections + 4 * self.inner * self.options.state_size

    def cache_elements_per_token(self) -> int:
        """None: the state has one size for every length."""
        return 0


COMPONENT = Mamba2
