"""How sure a rank is: the share of plausible outcomes of the measurement in which the row would have the same rank."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from efficientllm.metrics import Direction
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
    that side. Drawing anew from the repeats themselves would be too sure: of three repeats it can only make values between
    the lowest and the highest (docs/measurement.md). Rows are drawn independently; what all rows of a run share is
    in neither the intervals nor this.

    Args:
        estimates: The rows of one group and metric; None where a row has no value.
        direction: Which direction is better.
        draws: Number of draws.

    Returns:
        A share for each row; None where it has no rank, or where no row of the column has an interval. The same rows give
        the same shares in any order, unit and direction.
    """
    known = [estimate for estimate in estimates if estimate is not None]
    if not any(estimate.low is not None for estimate in known):
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


_Loss = tuple[float, float, float, int]


def _loss(estimate: Estimate, direction: Direction) -> _Loss:
    """Point, lower end, upper end and n of an estimate (0: not known), negated where higher is better."""
    low, high = estimate.bounds()
    n = estimate.n if estimate.n is not None and estimate.n > 1 else 0
    return (estimate.value, low, high, n) if direction == "lower" else (-estimate.value, -high, -low, n)


def _draw(losses: Sequence[_Loss], draws: int) -> np.ndarray:
    from scipy.special import ndtri, stdtrit

    columns = []
    for position, (value, low, high, n) in enumerate(losses):
        # one stream per row: a row's numbers do not depend on how many the rows before it took
        random = np.random.default_rng([_SEED, position])
        if n:
            deviates, reach = random.standard_t(n - 1, draws), float(stdtrit(n - 1, 0.975))
        else:
            deviates, reach = random.standard_normal(draws), float(ndtri(0.975))
        scaled = deviates / reach
        columns.append(value + np.where(scaled > 0, scaled * (high - value), scaled * (value - low)))
    return np.stack(columns, axis=1)
