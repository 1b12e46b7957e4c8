"""Ranks within one group and metric, and which of them are tied."""

from collections.abc import Sequence
from dataclasses import dataclass

from efficientllm.metrics import Direction

RESOLUTION = 0.001
"""Least width of an interval, as a share of the value: repeats in one process can agree to the last byte where another
process would not, and a difference that no table shows is no reason to rank one row before another."""


@dataclass(frozen=True)
class Estimate:
    """A point estimate and its 95 % interval.

    Args:
        value: The point estimate.
        low: Lower end of the interval; None where there is one repeat only, or nothing random to repeat.
        high: Upper end of the interval; None together with `low`.
        n: How many repeats or observations the interval comes from, where that is known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def text(self) -> str:
        """Renders value and interval for a terminal, such as "1.234 [1.19, 1.28]"."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"

    def overlaps(self, other: "Estimate") -> bool:
        """Says whether the two closed intervals share a point; see `ties` for what an interval is here."""
        (low, high), (other_low, other_high) = self.resolved(), other.resolved()
        return low <= other_high and other_low <= high

    def resolved(self) -> tuple[float, float]:
        """Returns the ends of the interval, at least `RESOLUTION` of the value wide where there is one."""
        low, high = self.bounds()
        half = 0.0 if self.low is None and self.high is None else RESOLUTION / 2 * abs(self.value)
        return min(low, self.value - half), max(high, self.value + half)

    def bounds(self) -> tuple[float, float]:
        """Returns the ends of the interval, extended to the point estimate; the estimate itself where there is none."""
        ends = [end for end in (self.low, self.value, self.high) if end is not None]
        return min(ends), max(ends)


def ranks(values: Sequence[float | None], direction: Direction) -> list[int | None]:
    """Ranks the point estimates: 1 is the best, equal values share a rank and the next rank is skipped (1, 2, 2, 4).

    Args:
        values: Point estimates; None where a row has none, which then has no rank.
        direction: Which direction is better.

    Returns:
        The ranks in the given order.
    """
    known = [value for value in values if value is not None]
    return [
        None if value is None else 1 + sum(other > value if direction == "higher" else other < value for other in known)
        for value in values
    ]


def ties(estimates: Sequence[Estimate | None]) -> list[tuple[int, ...]]:
    """Lists, for each row, the rows that it is tied with.

    Two rows are tied when their 95 % intervals share at least one point. An interval is at least `RESOLUTION` of its value
    wide, a value without an interval counts as one of zero width, and an interval that leaves out its own point estimate
    is extended to it; so rows with equal values are always tied. Being tied is not transitive: A and B, and B and C, may
    be tied while A and C are not. A tie does not change a rank, which is that of the point estimate.

    Args:
        estimates: The rows of one group and metric; None where a row has no value, which is never tied.

    Returns:
        For each row the positions of the rows tied with it, in ascending order; empty where it stands alone.
    """
    return [
        tuple(
            position
            for position, other in enumerate(estimates)
            if position != own and estimate is not None and other is not None and estimate.overlaps(other)
        )
        for own, estimate in enumerate(estimates)
    ]
