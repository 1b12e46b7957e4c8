"""One figure for several metrics: the mean of the normalized values, with the weights that its user chooses."""

import math
from collections.abc import Iterable, Mapping

from efficientllm.errors import ParameterError, unknown_name

SCORE = "score"
"""Key of the weighted score as a column."""

_HEAVIEST = 1e6


def parse_weights(text: str, metrics: Iterable[str]) -> dict[str, float]:
    """Reads weights such as "task_loss=2,energy_per_token=0"; a metric that is not named has the weight 1.

    Args:
        text: Metrics and their weights.
        metrics: All metrics of the table.

    Raises:
        ParameterError: A part is not metric=number, a metric is unknown or named twice, a weight is negative or not
            finite, or all are 0.
    """
    known = list(metrics)
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, separator, number = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not separator or not name or not 0 <= weight <= _HEAVIEST:
            raise ParameterError(
                f"weights: {part.strip()!r} is not metric=number with a number from 0 to {_HEAVIEST:g}: "
                "for example task_loss=2,average_latency=0"
            )
        if name not in known:
            raise unknown_name("metric in the weights", name, known)
        if name in weights:
            raise ParameterError(f"weights: {name!r} is named twice")
        weights[name] = weight
    weights = dict.fromkeys(known, 1.0) | weights
    if not any(weights.values()):
        raise ParameterError("weights: all are 0, so nothing is left to score by")
    return weights


def weighted_scores(
    normalized: Mapping[str, Mapping[str, float | None]], weights: Mapping[str, float]
) -> dict[str, float | None]:
    """Weighted mean of the normalized values of each row of one group.

    Args:
        normalized: For each metric the normalized value of each row; None where it has none.
        weights: Weights of the metrics that count; one that is not named does not.

    Returns:
        For each row its score between 0.1 and 1.0, higher is better; None where it lacks a metric that counts. A metric
        that no row of the group has does not count.
    """
    rows = dict.fromkeys(row for column in normalized.values() for row in column)
    counted = {
        name: column
        for name, column in normalized.items()
        if weights.get(name, 0.0) > 0 and any(value is not None for value in column.values())
    }
    total = sum(weights[name] for name in counted)
    scores: dict[str, float | None] = {}
    for row in rows:
        values = {name: column.get(row) for name, column in counted.items()}
        known = {name: value for name, value in values.items() if value is not None}
        complete = bool(counted) and len(known) == len(counted)
        scores[row] = sum(weights[name] * value for name, value in known.items()) / total if complete else None
    return scores
