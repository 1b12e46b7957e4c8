"""Min-max normalization of one metric within one group."""

from collections.abc import Sequence

from efficientllm.metrics import Direction

FLOOR = 0.1
"""The normalized value of the worst row; the best has 1.0."""


def normalize(values: Sequence[float | None], direction: Direction) -> list[float | None]:
    """Scales the values of one metric within one group to [0.1, 1.0], where 1.0 is the best.

    EfficientLLM (arXiv 2505.13840): 0.1 + 0.9 (v - min) / (max - min) where higher is better, and
    0.1 + 0.9 (max - v) / (max - min) where lower is better. A column without spread has no worst row: all are 1.0.

    Args:
        values: Finite values in any unit; None where a row has none.
        direction: Which direction is better.

    Returns:
        The normalized values in the given order; None stays None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return [None] * len(values)
    low, high = min(known), max(known)
    best, worst = (high, low) if direction == "higher" else (low, high)
    # both differences have the same sign, so their quotient lies in [0, 1] in either direction
    return [
        None if value is None else 1.0 if low == high else FLOOR + (1.0 - FLOOR) * ((value - worst) / (best - worst))
        for value in values
    ]
