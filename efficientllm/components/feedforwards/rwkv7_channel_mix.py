"""RWKV-7's channel mixing: W_v relu(W_k x')^2, where x' mixes each token with the one before (arXiv 2503.14456, section 4.2)."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Feedforward, LayerState, Span
from efficientllm.models.token_shift import shifted_difference


class RWKV7ChannelMixing(Feedforward):
    """Two matrices around a squared ReLU; 4 C I FLOPs per token.

    Args:
        config: The decoder's configuration.
        layer: The block's index, which the initial mix depends on.
    """

    def __init__(self, config: DecoderConfig, layer: int = 0) -> None:
        super().__init__(config)
        self.layer, self.layers = layer, config.layers
        self.mix = nn.Parameter(torch.empty(config.hidden_size))
        self.k_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.v_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def initialize(self) -> None:
        """Draws the published initial weights."""
        width = self.k_proj.in_features
        channel = torch.arange(width, device=self.mix.device) / width
        self.mix.copy_(1 - channel ** ((1 - self.layer / self.layers) ** 4))
        nn.init.uniform_(self.k_proj.weight, -0.5 / math.sqrt(width), 0.5 / math.sqrt(width))
        nn.init.zeros_(self.v_proj.weight)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transforms each token; there is no auxiliary loss."""
        if span.padding_mask_bt is not None:
            hidden_btc = hidden_btc * span.padding_mask_bt.unsqueeze(-1)
        mixed = torch.addcmul(hidden_btc, shifted_difference(hidden_btc, state), self.mix)
        return self.v_proj(F.relu(self.k_proj(mixed)).square()), None

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates the last token's input `[B, C]`."""
        del max_length
        return {"previous": torch.zeros(batch_size, self.k_proj.in_features, dtype=dtype, device=device)}

    def flops_per_token(self) -> float:
        """Forward FLOPs for one token: two matrices."""
        return 4 * self.k_proj.in_features * self.k_proj.out_features


COMPONENT = RWKV7ChannelMixing
