"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), in Llama's layout of pairs.

Pair i of a head of width D is rotated by the angle position * base^(-2 i / D), so that scores depend on distances.
"""

import math

import torch
from pydantic import Field

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Position, Rotation, Span
from efficientllm.models.tables import PositionTable


class RotaryScaling(Section):
    """Llama 3's stretching of the slow rotations, for contexts beyond those first trained on (arXiv 2407.21783)."""

    factor: float = Field(ge=1)
    low_frequency_factor: float = Field(gt=0)
    high_frequency_factor: float = Field(gt=0)
    original_context: int = Field(ge=1)


class RotaryOptions(Section):
    """Parameters of the rotary embedding."""

    base: float = Field(default=10000.0, gt=1)
    scaling: RotaryScaling | None = None


class RotaryPosition(Position):
    """Rotates queries and keys."""

    Options = RotaryOptions

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self._context_length = config.context_length
        self._tables: dict[int, PositionTable] = {}

    def check_width(self, rotary_dim: int) -> None:
        """Makes sure that the mixer has pairs to rotate.

        Raises:
            ParameterError: The mixer has nothing to rotate, or heads of odd width.
        """
        if rotary_dim == 0 or rotary_dim % 2:
            raise ParameterError(
                f"position 'rope' needs heads of even width to rotate, and this mixer has {rotary_dim}: change hidden_size, "
                "heads or the mixer's options"
            )

    def rotation(self, span: Span, rotary_dim: int, like: torch.Tensor) -> Rotation | None:
        """Returns cosines and signed sines `[T, 1, D]`, or `[B, T, 1, D]` under padding."""
        if rotary_dim not in self._tables:
            self._tables[rotary_dim] = PositionTable(_Angles(self.options, rotary_dim), self._context_length)
        cosine, signed_sine = self._tables[rotary_dim].rows(span, like).unsqueeze(-2).chunk(2, dim=-1)
        return cosine, signed_sine


class _Angles:
    """Computes cos(a), cos(a), -sin(a), sin(a) side by side, from the angles a of the pairs."""

    def __init__(self, options: RotaryOptions, width: int) -> None:
        self._options, self._width = options, width

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self._width, 2, dtype=torch.float32, device=positions.device) / self._width
        frequencies = 1.0 / self._options.base**exponents
        if self._options.scaling is not None:
            frequencies = _stretched(frequencies, self._options.scaling)
        angles = torch.outer(positions, frequencies)
        return torch.cat((angles.cos(), angles.cos(), -angles.sin(), angles.sin()), dim=-1)


def _stretched(frequencies: torch.Tensor, scaling: RotaryScaling) -> torch.Tensor:
    """Slow rotations are divided by the factor, fast ones kept; between the two bounds the change is gradual."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


COMPONENT = RotaryPosition
