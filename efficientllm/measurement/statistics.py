"""Repeats to a value with an interval."""

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
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval (Efron 1979).

    Args:
        samples: Observations along the first axis `[n, ...]`.
        statistic: Maps draws `[draws, n, ...]` to one value each, `[draws]`.
        seed: Seed of the draws, fixed so that a record is a function of its repeats.
    """
    picks = np.random.default_rng(seed).integers(0, len(samples), size=(_DRAWS, len(samples)))
    low, high = np.percentile(statistic(samples[picks]), [2.5, 97.5])
    return float(low), float(high)


def variation(repeats: Sequence[float]) -> float | None:
    """Coefficient of variation: sample standard deviation over mean; None for a single repeat or a mean of zero."""
    if len(repeats) < 2 or np.mean(repeats) == 0:
        return None
    return float(np.std(repeats, ddof=1) / abs(np.mean(repeats)))


def summarize(
    key: str, repeats: Sequence[float], *, source: Source, method: str, window_s: float | None = None
) -> Value:
    """Summarises the repeats of one metric by their median and its bootstrap interval.

    Args:
        key: The metric, which supplies unit and direction.
        repeats: One figure per repeat, in the order in which they were taken.
        source: Whether the figures were measured or come from a model.
        method: How they were taken.
        window_s: Mean length of a repeat's window in seconds.
    """
    values = np.asarray(repeats, dtype=float)
    interval = bootstrap_interval(values, lambda draws: np.median(draws, axis=1)) if len(values) > 1 else (None, None)
    spread = variation(repeats)
    known = metric(key)
    return Value(
        value=float(np.median(values)), unit=known.unit, direction=known.direction, source=source, method=method,
        n=len(values), repeats=[float(value) for value in values], ci_low=interval[0], ci_high=interval[1],
        coefficient_of_variation=spread, noisy=spread is not None and spread > NOISY, window_s=window_s,
    )  # fmt: skip


def single(key: str, value: float, *, method: str, interval: tuple[float, float] | None = None, n: int = 1) -> Value:
    """A measured value that is no median of repeats: a count, or a mean over `n` observations with its interval."""
    known = metric(key)
    low, high = interval or (None, None)
    return Value(
        value=value, unit=known.unit, direction=known.direction, source="measured", method=method, n=n,
        ci_low=low, ci_high=high,
    )  # fmt: skip
