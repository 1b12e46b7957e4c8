"""Tables over positions, computed once and kept beside the model rather than in it.

They are no buffers, since buffers that are not saved stay uninitialised when a model is built on the meta device and
loaded from a file, and since casting a model to 16 bits would cast its angles too.
"""

from collections.abc import Callable
from typing import Any

import torch

from efficientllm.models.interfaces import Span


class PositionTable:
    """Rows indexed by position, grown on demand.

    Args:
        compute: Maps positions `[P]` (float32) to a table `[P, W]` (float32).
        length: Rows of the first table.
    """

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], length: int) -> None:
        self._compute = compute
        self._length = length
        self._tables: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def rows(self, span: Span, like: torch.Tensor) -> torch.Tensor:
        """Returns the rows of a span's positions.

        Args:
            span: The tokens.
            like: A tensor whose type and device the rows shall have.

        Returns:
            `[T, W]` where all sequences stand at the same positions, else `[B, T, W]`.
        """
        key = (str(like.device), like.dtype)
        table = self._tables.get(key)
        if table is None or table.shape[0] < span.end:
            table = self._tables[key] = self._build(max(self._length, 2 * span.end), like)
        if span.positions_bt is None:
            return table[span.start : span.end]
        return table[span.positions_bt]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self, length: int, like: torch.Tensor) -> torch.Tensor:
        # outside inference mode, since a table first used in an evaluation is later saved for a backward pass
        positions = torch.arange(length, dtype=torch.float32, device=like.device)
        with torch.autocast(like.device.type, enabled=False):
            return self._compute(positions).to(like.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PositionTable":
        return PositionTable(self._compute, self._length)
