"""The two-layer perceptron of GPT-2 and GPT-NeoX: down(gelu(up(x))), with biases (Hendrycks and Gimpel, arXiv 1606.08415)."""

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Feedforward, LayerState, Span


class GELUPerceptron(Feedforward):
    """Two biased matrices around an exact GELU; 4 C I FLOPs per token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transforms each token; there is no auxiliary loss."""
        del span, state
        return self.down_proj(F.gelu(self.up_proj(hidden_btc))), None

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the down projection's weight."""
        return [self.down_proj.weight]

    def flops_per_token(self) -> float:
        """Forward FLOPs for one token: two matrices."""
        return 4 * self.up_proj.in_features * self.up_proj.out_features


COMPONENT = GELUPerceptron
