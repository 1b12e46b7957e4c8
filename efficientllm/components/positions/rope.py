"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), in Llama's layout of pairs.

Pair i of a head of width D is rotated by the angle position * base^(-2 i / D), so that scores depend on distances.
"""

import torch
from pydantic import Field

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Position, Rotation, Span
from efficientllm.models.tables import PositionTable


class RotaryOptions(Section):
    """Parameters of the rotary embedding."""

    base: float = Field(default=10000.0, gt=1)


class RotaryPosition(Position):
    """Rotates queries and keys."""

    Options = RotaryOptions

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self._context_length = config.context_length
        self._tables: dict[int, PositionTable] = {}

    def rotation(self, span: Span, rotary_dim: int, like: torch.Tensor) -> Rotation | None:
        """Returns cosines and signed sines `[T, 1, D]`, or `[B, T, 1, D]` under padding.

        Raises:
            ParameterError: The mixer has nothing to rotate, or heads of odd width.
        """
        if rotary_dim == 0 or rotary_dim % 2:
            raise ParameterError(
                f"position 'rope' needs heads of even width to rotate, and this mixer has {rotary_dim}"
            )
        if rotary_dim not in self._tables:
            self._tables[rotary_dim] = PositionTable(_Angles(self.options.base, rotary_dim), self._context_length)
        cosine, signed_sine = self._tables[rotary_dim].rows(span, like).unsqueeze(-2).chunk(2, dim=-1)
        return cosine, signed_sine


class _Angles:
    """Computes cos(a), cos(a), -sin(a), sin(a) side by side, from the angles a of the pairs."""

    def __init__(self, base: float, width: int) -> None:
        self._base, self._width = base, width

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self._width, 2, dtype=torch.float32, device=positions.device) / self._width
        angles = torch.outer(positions, 1.0 / self._base**exponents)
        return torch.cat((angles.cos(), angles.cos(), -angles.sin(), angles.sin()), dim=-1)


COMPONENT = RotaryPosition
