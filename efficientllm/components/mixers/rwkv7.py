"""RWKV-7 "Goose" time mixing (Peng et al. 2025, arXiv 2503.14456, section 4, equations 3 to 15).

A linear recurrence whose state is edited by a generalized delta rule: a removal key kappa reads what the state holds, an
in-context learning rate replaces part of it, and each channel decays at a rate that the token decides.
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
from efficientllm.models.delta_rule import chunked_delta_rule, delta_rule_step, recurrent_delta_rule
from efficientllm.models.interfaces import LayerState, Mixer, Span
from efficientllm.models.token_shift import shifted_difference

_MIXES = ("receptance", "decay", "key", "value", "learning_rate", "gate")
_MAX_LOG_DECAY = math.exp(-0.5)
_FIRST_VALUE = "rwkv7_first_value"


class RWKV7Options(Section):
    """Parameters of the layer; None takes the published multiple of the square root of the hidden size."""

    head_size: int = Field(default=64, ge=2)
    decay_rank: int | None = Field(default=None, ge=1)
    learning_rate_rank: int | None = Field(default=None, ge=1)
    value_rank: int | None = Field(default=None, ge=1)
    gate_rank: int | None = Field(default=None, ge=1)
    # beyond 128 tokens, quotients of decays leave float32's range
    chunk: int = Field(default=64, ge=8, le=128, description="tokens per chunk of the parallel form, a power of two")


def default_rank(hidden_size: int, factor: float) -> int:
    """Rank of a low-rank map: `factor` times the square root of the hidden size, to a multiple of 32."""
    return max(32, round(factor * math.sqrt(hidden_size) / 32) * 32)


class LowRankMap(nn.Module):
    """x -> bias + f(x A) B, with A zero at the start.

    Args:
        width: Size of input and output.
        rank: Columns of A.
        bias: Whether there is one.
    """

    def __init__(self, width: int, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=bias)

    def initialize(self, bias: torch.Tensor | None) -> None:
        """Zeroes A, draws B with orthogonal columns, and sets the bias."""
        nn.init.zeros_(self.down.weight)
        # in float32: the decomposition behind it is implemented for no narrower type
        drawn = torch.empty_like(self.up.weight, dtype=torch.float32)
        nn.init.orthogonal_(drawn, gain=0.1 * max(1.0, math.sqrt(self.up.in_features / self.up.out_features)))
        self.up.weight.copy_(drawn)
        if bias is not None:
            self.up.bias.copy_(bias)


class RWKV7TimeMixing(Mixer):
    """The time-mixing layer.

    Args:
        config: The decoder's configuration.
        layer: The block's index. The first layer's values are mixed into those of all later ones.

    Raises:
        ParameterError: The heads do not divide the hidden size, the chunk is no power of two, or the block does not
            tell the layer its index.
    """

    Options = RWKV7Options
    reference_kernel = "token-by-token recurrence"
    fast_kernel = "chunked delta rule"
    undecayed = ("mix", "bonus")

    def __init__(self, config: DecoderConfig, layer: int | None = None) -> None:
        super().__init__(config)
        if layer is None:
            raise ParameterError(
                f"mixer 'rwkv7' must know its layer, which block {config.block!r} does not tell it; use block 'rwkv'"
            )
        options, width = self.options, config.hidden_size
        if width % options.head_size:
            raise ParameterError(f"hidden_size {width} is not a multiple of mixer.head_size {options.head_size}")
        if options.chunk & (options.chunk - 1):
            raise ParameterError(f"mixer.chunk is {options.chunk}, which is not a power of two")
        self.heads = width // options.head_size
        self.layer, self.layers = layer, config.layers
        self.mix = nn.Parameter(torch.empty(len(_MIXES), width))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay = LowRankMap(width, options.decay_rank or default_rank(width, 2.5))
        self.learning_rate = LowRankMap(width, options.learning_rate_rank or default_rank(width, 2.5))
        self.gate = LowRankMap(width, options.gate_rank or default_rank(width, 5.0), bias=False)
        self.value = LowRankMap(width, options.value_rank or default_rank(width, 1.7)) if layer else None
        self.removal_scale = nn.Parameter(torch.empty(width))
        self.replacement_scale = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(self.heads, options.head_size))
        self.norm = nn.GroupNorm(self.heads, width, eps=1e-5 * options.head_size)

    def initialize(self) -> None:
        """Draws the published initial weights, which depend on the layer's depth."""
        width = self.r_proj.in_features
        depth, rest = self.layer / max(1, self.layers - 1), 1 - self.layer / self.layers
        device = self.mix.device
        channel = torch.arange(width, device=device) / width
        ramp = torch.arange(width, device=device) / (width - 1) - 0.5
        place = torch.arange(width, device=device) % self.options.head_size
        zigzag = (place - (self.options.head_size - 1) / 2) / ((self.options.head_size - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        for row, power in enumerate((0.2, 0.9, 0.7, 0.7, 0.9, 0.2)):
            self.mix[row].copy_(1 - channel ** (power * rest))
        decay = -6 + 6 * (ramp + 0.5) ** (1 + depth**0.3)
        self.decay.initialize(decay + 0.5 + 2.5 * zigzag)
        self.learning_rate.initialize(-0.19 + 0.3 * zigzag + 0.4 * ramp)
        self.gate.initialize(None)
        if self.value is not None:
            self.value.initialize(0.73 - 0.4 * ramp)
        self.removal_scale.copy_(0.71 - 0.1 * ramp)
        nn.init.constant_(self.replacement_scale, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        bound = 0.5 / math.sqrt(width)
        nn.init.uniform_(self.r_proj.weight, -bound, bound)
        nn.init.uniform_(self.k_proj.weight, -0.1 * bound, 0.1 * bound)
        nn.init.uniform_(self.v_proj.weight, -bound, bound)
        nn.init.zeros_(self.o_proj.weight)
        nn.init.constant_(self.norm.weight, ((1 + self.layer) / self.layers) ** 0.7)

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Runs the layer over a chunk of tokens, from the state that earlier ones left."""
        batch, length, width = hidden_btc.shape
        real_bt = span.padding_mask_bt
        if real_bt is not None:
            hidden_btc = hidden_btc * real_bt.unsqueeze(-1)
        difference = shifted_difference(hidden_btc, state)
        # one by one, which keeps them in a CPU's cache; a compiler fuses them
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(hidden_btc, difference, mix) for mix in self.mix.unbind())
        r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
        log_w = -_MAX_LOG_DECAY * torch.sigmoid(self.decay.up(torch.tanh(self.decay.down(x_w))).float())
        if self.value is None:
            span.shared[_FIRST_VALUE] = v
        else:
            v = torch.lerp(v, span.shared[_FIRST_VALUE], torch.sigmoid(self.value.up(self.value.down(x_v))))
        rate = torch.sigmoid(self.learning_rate.up(self.learning_rate.down(x_a)))
        gate = self.gate.up(torch.sigmoid(self.gate.down(x_g)))
        removal = F.normalize((k * self.removal_scale).view(batch, length, self.heads, -1), dim=-1)
        k = k * torch.addcmul(torch.ones_like(rate), rate - 1, self.replacement_scale)
        if real_bt is not None:
            # padding neither decays the state nor reads or writes it
            log_w, k, v = (x * real_bt.unsqueeze(-1) for x in (log_w, k, v))
            removal = removal * real_bt[:, :, None, None]
        r, log_w, k, v, rate = (x.view(batch, length, self.heads, -1) for x in (r, log_w, k, v, rate))
        initial = None if state is None else state["state"]
        tokens = (r, log_w, k, v, -removal, removal * rate)
        with torch.autocast(hidden_btc.device.type, enabled=False):
            if length == 1 and initial is not None:
                r1, w1, k1, v1, a1, b1 = (x.squeeze(1) for x in tokens)
                y, last = delta_rule_step(r1, w1, k1, v1, a1, b1, initial)
            elif length > 1 and self.runs_fast(hidden_btc.device):
                y, last = chunked_delta_rule(*tokens, initial, chunk=self.options.chunk)
            else:
                y, last = recurrent_delta_rule(*tokens, initial)
        if state is not None:
            state["state"].copy_(last)
        scale, shift = self.norm.weight.to(y.dtype), self.norm.bias.to(y.dtype)
        normalized = F.group_norm(y.reshape(-1, width), self.heads, scale, shift, self.norm.eps).view_as(hidden_btc)
        bonus = (r * k * self.bonus).sum(dim=-1, keepdim=True) * v
        return self.o_proj((normalized + bonus.reshape(batch, length, width)).to(gate.dtype) * gate)

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates the last token's input `[B, C]` and the state `[B, H, D, D]`, float32."""
        del max_length
        size, width = self.options.head_size, self.r_proj.in_features
        return {
            "previous": torch.zeros(batch_size, width, dtype=dtype, device=device),
            "state": torch.zeros(batch_size, self.heads, size, size, dtype=torch.float32, device=device),
        }

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token: all matrices, and four products of a vector with the state's size, at any context."""
        del context
        matrices = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        return 2 * matrices + 8 * self.r_proj.in_features * self.options.head_size

    def cache_elements_per_token(self) -> int:
        """None: the state has one size for every length."""
        return 0


COMPONENT = RWKV7TimeMixing
