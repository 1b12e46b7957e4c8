"""How sure a rank or a highest score is: the share of plausible outcomes of the measurement in which it would stand."""

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import numpy as np

from efficientllm.metrics import Direction
from efficientllm.ranking.normalize import FLOOR
from efficientllm.ranking.rank import Estimate, ranks

DRAWS = 2000
"""Draws per column: a share of one half then has a standard error of 1.1 percentage points."""

_SEED = 0


def rank_stability(
    estimates: Sequence[Estimate | None], direction: Direction, *, draws: int = DRAWS
) -> list[float | None]:
    """Share of draws, a parametric bootstrap from the intervals, in which each row has the rank of its point estimate.

    Each draw gives every row a value that its 95 % interval makes plausible: Student's t about the point estimate with
    n - 1 degrees of freedom (normal where n is not known), scaled so that each end of the interval is its 97.5 % point on
    that side; as for `rank.ties`, an interval is at least `rank.RESOLUTION` of its value wide. Drawing anew from the repeats
    themselves would be too sure: of three repeats it can only make values between the lowest and the highest
    (docs/measurement.md). Rows are drawn independently; what all rows of a run share is in neither the intervals nor this.

    Args:
        estimates: The rows of one group and metric; None where a row has no value.
        direction: Which direction is better.
        draws: Number of draws.

    Returns:
        A share for each row; None where it has no rank, where it is the only one with a rank, or where no row of the column
        has an interval. The same rows give the same shares in any order, unit and direction.
    """
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < 2 or not any(estimate.low is not None for estimate in known):
        return [None] * len(estimates)
    # as losses in a canonical order, so that neither the order of the rows nor the direction picks other random numbers
    losses = sorted(_loss(estimate, direction) for estimate in known)
    drawn = _draw(losses, draws)
    shares: dict[_Loss, list[float]] = {}
    for position, (loss, rank) in enumerate(zip(losses, ranks([loss[0] for loss in losses], "lower"), strict=True)):
        better = (drawn < drawn[:, position : position + 1]).sum(axis=1)
        shares.setdefault(loss, []).append(float((better + 1 == rank).mean()))
    # the mean: rows with the same estimate and interval are exchangeable
    return [None if estimate is None else fmean(shares[_loss(estimate, direction)]) for estimate in estimates]


def highest_score_shares(
    columns: Mapping[str, tuple[Sequence[Estimate | None], Direction]],
    weights: Mapping[str, float],
    alone: Collection[str] = (),
    *,
    draws: int = DRAWS,
) -> list[float | None]:
    """Share of draws in which each row has the highest weighted mean of normalized values (`score.weighted_scores`).

    Values are drawn as in `rank_stability`, and every draw is normalized anew. A row's latency, throughput and energy come from
    the same windows and are off together, so that a row has one draw for all of its metrics; drawn one by one they would
    average out, and the winner would look surer than it is.

    Args:
        columns: For each metric the rows' estimates, in the same order, and which direction is better.
        weights: Weights of the metrics.
        alone: Metrics that are drawn on their own, for other things decide their error: the quality.
        draws: Number of draws.

    Returns:
        A share for each row; rows that share the highest score of a draw share it. None for a row that lacks a metric that
        counts, and for all where no value has an interval or only one row has all metrics. The order of rows and metrics does
        not matter.
    """
    counted = {
        name: column
        for name, column in sorted(columns.items())
        if weights.get(name, 0.0) > 0 and any(estimate is not None for estimate in column[0])
    }
    rows = max((len(estimates) for estimates, _ in columns.values()), default=0)
    complete = [
        row for row in range(rows) if counted and all(estimates[row] is not None for estimates, _ in counted.values())
    ]
    losses = {
        row: [_loss(estimate, direction) for estimates, direction in counted.values() if (estimate := estimates[row])]
        for row in complete
    }
    if len(complete) < 2 or all(low == high for row in losses.values() for _, low, high, _ in row):
        return [None] * rows
    order = sorted(complete, key=lambda row: losses[row])  # so that the order of the rows picks no other random numbers
    scores = np.zeros((draws, len(order)))
    for place, name in enumerate(counted):
        stream = 1 + place if name in alone else 0
        drawn = _draw([losses[row][place] for row in order], draws, stream)
        best, worst = drawn.min(axis=1, keepdims=True), drawn.max(axis=1, keepdims=True)
        spread = np.where(worst > best, worst - best, 1.0)
        normalized = np.where(worst > best, FLOOR + (1.0 - FLOOR) * (worst - drawn) / spread, 1.0)
        scores += weights[name] * normalized
    highest = np.isclose(scores, scores.max(axis=1, keepdims=True), rtol=0, atol=1e-12)
    shares: dict[tuple[_Loss, ...], list[float]] = {}
    for row, share in zip(order, (highest / highest.sum(axis=1, keepdims=True)).mean(axis=0), strict=True):
        shares.setdefault(tuple(losses[row]), []).append(float(share))
    # the mean: rows with the same estimates and intervals are exchangeable
    return [fmean(shares[tuple(losses[row])]) if row in losses else None for row in range(rows)]


_Loss = tuple[float, float, float, int]


def _loss(estimate: Estimate, direction: Direction) -> _Loss:
    """Point, lower end, upper end and n of an estimate (0: not known), negated where higher is better."""
    low, high = estimate.resolved()  # the interval that ties are judged by: a tied rank is not sure
    n = estimate.n if estimate.n is not None and estimate.n > 1 else 0
    return (estimate.value, low, high, n) if direction == "lower" else (-estimate.value, -high, -low, n)


def _draw(losses: Sequence[_Loss], draws: int, stream: int = 0) -> np.ndarray:
    """Draws `[draws, rows]`; the same stream gives a row the same quantile in each of its columns."""
    from scipy.special import ndtri, stdtrit

    columns = []
    for position, (value, low, high, n) in enumerate(losses):
        # one stream per row: a row's numbers do not depend on how many the rows before it took
        quantiles = np.random.default_rng([_SEED, stream, position]).random(draws)
        scaled = stdtrit(n - 1, quantiles) / stdtrit(n - 1, 0.975) if n else ndtri(quantiles) / ndtri(0.975)
        columns.append(value + np.where(scaled > 0, scaled * (high - value), scaled * (value - low)))
    return np.stack(columns, axis=1)
