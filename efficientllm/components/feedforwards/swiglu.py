"""SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202, equation 6)."""

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Feedforward, LayerState, Span


class SwiGLU(Feedforward):
    """The gated feed-forward layer of Llama; 6 C I FLOPs per token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transforms each token; there is no auxiliary loss."""
        del span, state
        return self.down_proj(F.silu(self.gate_proj(hidden_btc)) * self.up_proj(hidden_btc)), None

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the down projection's weight."""
        return [self.down_proj.weight]

    def flops_per_token(self) -> float:
        """Forward FLOPs for one token: three matrices."""
        return 6 * self.gate_proj.in_features * self.gate_proj.out_features


COMPONENT = SwiGLU
