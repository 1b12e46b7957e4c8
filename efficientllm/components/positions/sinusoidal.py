"""Absolute sinusoidal positions (Vaswani et al. 2017, arXiv 1706.03762, sections 3.4 and 3.5).

Embeddings are brought to unit variance and the table is added: PE(p, 2i) = sin(p / 10000^(2i / C)), PE(p, 2i + 1) the
cosine. The paper's factor sqrt(C) is the same thing for embeddings drawn with variance 1 / C; here the factor is the
inverse of the initial deviation, so that words and positions start out alike in size whatever it is. Sines and cosines stand in two halves
rather than alternating, which only permutes the channels.
"""

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Position, Span
from efficientllm.models.tables import PositionTable

_BASE = 10000.0


class SinusoidalPosition(Position):
    """Adds a fixed table to the embeddings.

    Raises:
        ParameterError: The hidden size is odd.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        if config.hidden_size % 2:
            raise ParameterError(f"position 'sinusoidal' needs an even hidden_size, and it is {config.hidden_size}")
        self._scale = 1 / config.embedding_deviation
        self._table = PositionTable(_Waves(config.hidden_size), config.context_length)

    def embed(self, hidden_btc: torch.Tensor, span: Span) -> torch.Tensor:
        """Scales the embeddings and adds the rows of their positions."""
        return torch.add(self._table.rows(span, hidden_btc), hidden_btc, alpha=self._scale)


class _Waves:
    """Computes sines and cosines side by side."""

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self._width, 2, dtype=torch.float32, device=positions.device) / self._width
        angles = torch.outer(positions, 1.0 / _BASE**exponents)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


COMPONENT = SinusoidalPosition
