"""Repeats to a value with an interval."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from efficientllm.metrics import metric
from efficientllm.records import Source, Value

NOISY = 0.05
"""Coefficient of variation of the repeats above which a value is flagged as noisy."""

_DRAWS = 2000
_SEED = 0


def bootstrap_interval(
    samples: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = _SEED
) -> tuple[float, float] | None:
    """Percentile bootstrap 95 % interval (Efron 1979), for the dozens to thousands of windows or examples of an evaluation.

    Args:
        samples: Observations along the first axis `[n, ...]`.
        statistic: Maps draws `[draws, n, ...]` to one value each, `[draws]`.
        seed: Seed of the draws, fixed so that a record is a function of its repeats.

    Returns:
        The ends of the interval; None for a single observation, which says nothing of others.
    """
    if len(samples) < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, len(samples), size=(_DRAWS, len(samples)))
    low, high = np.percentile(statistic(samples[picks]), [2.5, 97.5])
    return float(low), float(high)


def share_interval(outcomes: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of a share of yes and no: Jeffreys' (Brown, Cai and DasGupta 2001, doi 10.1214/ss/1009213286, section 3.1.2).

    A bootstrap of examples that are all answered rightly, or none of them, has no width, as if another example could not
    turn out otherwise; this one ends at 1 % where none of 256 is.

    Args:
        outcomes: 1.0 or 0.0 for each example `[n]`.

    Returns:
        The ends of the interval, from 0 to 1; None for a single example, which says nothing of others.
    """
    from scipy.special import betaincinv

    if len(outcomes) < 2:
        return None
    yes, no = float(outcomes.sum()), float((1 - outcomes).sum())
    low = 0.0 if yes == 0 else float(betaincinv(yes + 0.5, no + 0.5, 0.025))
    high = 1.0 if no == 0 else float(betaincinv(yes + 0.5, no + 0.5, 0.975))
    return low, high


def paired_share_interval(outcomes: np.ndarray, reference: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the difference of two shares of the same examples (Agresti and Min 2005, doi 10.1002/sim.1781).

    Wald's, with half an example added to each of the four ways in which two models can answer one: so it has a width where
    they answer all alike, as another example need not.

    Args:
        outcomes: 1.0 or 0.0 for each example `[n]`.
        reference: The same of what they are compared with.

    Returns:
        The ends of the interval of the first share less the second; None for a single example.
    """
    if len(outcomes) < 2:
        return None
    examples = len(outcomes) + 2
    gained = (float((outcomes > reference).sum()) + 0.5) / examples
    lost = (float((outcomes < reference).sum()) + 0.5) / examples
    reach = 1.96 * math.sqrt((gained + lost - (gained - lost) ** 2) / examples)
    return gained - lost - reach, gained - lost + reach


def repeats_interval(repeats: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the typical repeat: Student's t on logarithms, and so of the geometric mean.

    With three to five repeats a percentile bootstrap can do no more than reach from the smallest to the largest, which
    holds the true value in three of four cases; Student's t allows for a spread that is itself known from a few repeats
    only. On logarithms, since times and energies vary by factors, and so that seconds per call and calls per second, one
    the inverse of the other, have the same interval. docs/measurement.md shows its coverage.

    Args:
        repeats: One figure per repeat; where one of them is not positive, the interval is on the figures themselves.

    Returns:
        The ends of the interval, extended to the median where that lies outside; None for a single repeat.
    """
    from scipy.special import stdtrit

    values = np.asarray(repeats, dtype=float)
    if len(values) < 2:
        return None
    positive = bool((values > 0).all())
    scale = np.log(values) if positive else values
    reach = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(scale, ddof=1)) / math.sqrt(len(values))
    ends = (float(np.mean(scale)) - reach, float(np.mean(scale)) + reach)
    low, high = (math.exp(ends[0]), math.exp(ends[1])) if positive else ends
    middle = float(np.median(values))
    return min(low, middle), max(high, middle)


def variation(repeats: Sequence[float]) -> float | None:
    """Coefficient of variation: sample standard deviation over mean; None for a single repeat or a mean of zero."""
    if len(repeats) < 2 or np.mean(repeats) == 0:
        return None
    return float(np.std(repeats, ddof=1) / abs(np.mean(repeats)))


def summarize(
    key: str, repeats: Sequence[float], *, source: Source, method: str, window_s: float | None = None
) -> Value:
    """Summarises the repeats of one metric by their median, with the interval of `repeats_interval`.

    Args:
        key: The metric, which supplies unit and direction.
        repeats: One figure per repeat, in the order in which they were taken.
        source: Whether the figures were measured or come from a model.
        method: How they were taken.
        window_s: Mean length of a repeat's window in seconds.
    """
    values = np.asarray(repeats, dtype=float)
    middle = float(np.median(values))
    low, high = repeats_interval(repeats) or (None, None)
    spread = variation(repeats)
    known = metric(key)
    if known.is_share and low is not None and high is not None:
        low, high = min(max(low, 0.0), middle), max(min(high, 100.0), middle)
    return Value(
        value=middle, unit=known.unit, direction=known.direction, source=source, method=method,
        n=len(values), repeats=[float(value) for value in values], ci_low=low, ci_high=high,
        coefficient_of_variation=spread, noisy=spread is not None and spread > NOISY, window_s=window_s,
    )  # fmt: skip


def single(key: str, value: float, *, method: str, interval: tuple[float, float] | None = None, n: int = 1) -> Value:
    """A measured value that is no median of repeats: a count, or a mean over `n` observations with its interval.

    The interval is extended to the value where that lies outside: a bootstrap of few or skewed observations may leave out
    what it is an interval of, and one of equal observations does by a rounding.
    """
    known = metric(key)
    low, high = (min(interval[0], value), max(interval[1], value)) if interval else (None, None)
    return Value(
        value=value, unit=known.unit, direction=known.direction, source="measured", method=method, n=n,
        ci_low=low, ci_high=high,
    )  # fmt: skip
