"""The pre-norm block of Llama: x + mixer(norm(x)), then x + feedforward(norm(x)), with RMSNorm."""

import torch
from torch import nn

from efficientllm.models.components import component
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Block, LayerState, Span
from efficientllm.models.norms import RMSNorm


class PreNormBlock(Block):
    """Mixer and feed-forward layer in sequence, each behind an RMSNorm."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.mixer_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mixer = component("mixer", config.mixer)(config)
        self.feedforward_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.feedforward = component("feedforward", config.feedforward)(config)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, mixer_state: LayerState | None, feedforward_state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the residual stream `[B, T, C]` after the layer, and the feed-forward layer's auxiliary loss."""
        hidden_btc = hidden_btc + self.mixer(self.mixer_norm(hidden_btc), span, mixer_state)
        update_btc, auxiliary_loss = self.feedforward(self.feedforward_norm(hidden_btc), span, feedforward_state)
        return hidden_btc + update_btc, auxiliary_loss

    @staticmethod
    def final_norm(config: DecoderConfig) -> nn.Module:
        """Builds the RMSNorm between the last block and the output head."""
        return RMSNorm(config.hidden_size, config.norm_epsilon)


COMPONENT = PreNormBlock
