"""No positional encoding: order is known from causality alone (Kazemnejad et al. 2023, arXiv 2305.19466)."""

from efficientllm.models.interfaces import Position


class NoPosition(Position):
    """Leaves everything as it is; recurrent mixers need nothing more."""


COMPONENT = NoPosition
