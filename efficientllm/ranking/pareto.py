"""The Pareto front: the rows that no other row beats in every respect."""

from collections.abc import Sequence

from efficientllm.metrics import Direction


def pareto_front(points: Sequence[Sequence[float | None]], directions: Sequence[Direction]) -> list[bool | None]:
    """Says which rows are on the Pareto front of several metrics.

    A row is dominated when another is at least as good in every metric and better in one; rows that are equal in every
    metric do not dominate each other. The point estimates count, not their intervals.

    Args:
        points: For each row its values, one per metric; None where it has none.
        directions: For each metric which direction is better.

    Returns:
        For each row whether it is on the front; None where one of its values is missing, which also dominates nothing.

    Raises:
        ValueError: A row has another number of values than there are directions.
    """
    losses = [
        None
        if any(value is None for value in point)
        # negated where higher is better, so that less is better everywhere
        else tuple(
            -value if direction == "higher" else value
            for value, direction in zip(point, directions, strict=True)
            if value is not None
        )
        for point in points
    ]
    known = {loss for loss in losses if loss is not None}
    front = {loss for loss in known if not any(_dominates(other, loss) for other in known)}
    return [None if loss is None else loss in front for loss in losses]


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(own <= other for own, other in zip(first, second, strict=True))
