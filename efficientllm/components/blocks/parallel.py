"""The parallel block of GPT-NeoX and Pythia: x + mixer(norm1(x)) + feedforward(norm2(x)), with LayerNorm.

Black et al. 2022, arXiv 2204.06745, section 2.1.
"""

import torch
from torch import nn

from efficientllm.models.components import component
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Block, LayerState, Span
from efficientllm.models.norms import LayerNorm


class ParallelBlock(Block):
    """Mixer and feed-forward layer side by side, each behind its own LayerNorm."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.mixer_norm = LayerNorm(config.hidden_size)
        self.mixer = component("mixer", config.mixer)(config)
        self.feedforward_norm = LayerNorm(config.hidden_size)
        self.feedforward = component("feedforward", config.feedforward)(config)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, mixer_state: LayerState | None, feedforward_state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the residual stream `[B, T, C]` after the layer, and the feed-forward layer's auxiliary loss."""
        mixed_btc = self.mixer(self.mixer_norm(hidden_btc), span, mixer_state)
        update_btc, auxiliary_loss = self.feedforward(self.feedforward_norm(hidden_btc), span, feedforward_state)
        return hidden_btc + mixed_btc + update_btc, auxiliary_loss

    @staticmethod
    def final_norm(config: DecoderConfig) -> nn.Module:
        """Builds the LayerNorm between the last block and the output head."""
        return LayerNorm(config.hidden_size)


COMPONENT = ParallelBlock
