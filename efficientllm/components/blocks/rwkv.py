"""RWKV's block: pre-norm with LayerNorm, and one more LayerNorm behind the embedding (arXiv 2503.14456, section 4)."""

import inspect
from typing import Any

import torch
from torch import nn

from efficientllm.config.load import ComponentKind
from efficientllm.models.components import component
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Block, LayerState, Span
from efficientllm.models.norms import LayerNorm


class RWKVBlock(Block):
    """Mixer and feed-forward layer in sequence; RWKV's own are told their layer, which their weights depend on."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.embedding_norm = LayerNorm(config.hidden_size) if layer == 0 else None
        self.mixer_norm = LayerNorm(config.hidden_size)
        self.mixer = _part("mixer", config.mixer, config, layer)
        self.feedforward_norm = LayerNorm(config.hidden_size)
        self.feedforward = _part("feedforward", config.feedforward, config, layer)

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, mixer_state: LayerState | None, feedforward_state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the residual stream `[B, T, C]` after the layer, and the feed-forward layer's auxiliary loss."""
        if self.embedding_norm is not None:
            hidden_btc = self.embedding_norm(hidden_btc)
        hidden_btc = hidden_btc + self.mixer(self.mixer_norm(hidden_btc), span, mixer_state)
        update_btc, auxiliary_loss = self.feedforward(self.feedforward_norm(hidden_btc), span, feedforward_state)
        return hidden_btc + update_btc, auxiliary_loss

    @staticmethod
    def final_norm(config: DecoderConfig) -> nn.Module:
        """Builds the LayerNorm between the last block and the output head."""
        return LayerNorm(config.hidden_size)


def _part(kind: ComponentKind, name: str, config: DecoderConfig, layer: int) -> Any:
    """Builds a component, and tells it its layer where it asks for it."""
    part = component(kind, name)
    return part(config, layer) if "layer" in inspect.signature(part).parameters else part(config)


COMPONENT = RWKVBlock
