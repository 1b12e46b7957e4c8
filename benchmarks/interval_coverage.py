"""How often 95 % intervals of a few repeats hold the true value, for several kinds of noise.

    python benchmarks/interval_coverage.py --draws 20000

The truth is what the repeats would come to on a machine that nothing disturbs: the median of the noise. `Student's t` is
the interval of efficientllm.measurement.statistics.repeats_interval, `bootstrap` the percentile bootstrap of the median
that one might take instead, `bootstrap-t` the studentised bootstrap of the mean logarithm. The width is the median ratio
of the upper end to the lower. docs/measurement.md holds the table.
"""

from collections.abc import Callable

import numpy as np
from command_line import new_parser, several, whole

from efficientllm.measurement.statistics import bootstrap_interval, repeats_interval

Noise = Callable[[np.random.Generator, int], np.ndarray]
Interval = tuple[float, float]

_RESAMPLES = 400


def normal(generator: np.random.Generator, repeats: int) -> np.ndarray:
    """Symmetric noise of 2 %."""
    return 1 + 0.02 * generator.standard_normal(repeats)


def skewed(generator: np.random.Generator, repeats: int) -> np.ndarray:
    """Log-normal noise of 20 %."""
    return np.exp(0.2 * generator.standard_normal(repeats))


def delayed(generator: np.random.Generator, repeats: int) -> np.ndarray:
    """Symmetric noise of 1 %; one repeat in ten takes up to half as long again, since something else ran."""
    disturbed = generator.random(repeats) < 0.1
    return normal(generator, repeats) ** 0.5 * (1 + 0.5 * disturbed * generator.random(repeats))


def drifting(generator: np.random.Generator, repeats: int) -> np.ndarray:
    """Noise of 2 % that the repeats of one process share in good part: correlation 0.8 from one to the next."""
    values = [generator.standard_normal()]
    for _ in range(repeats - 1):
        values.append(0.8 * values[-1] + 0.6 * generator.standard_normal())
    return 1 + 0.02 * np.array(values)


def student(values: np.ndarray, generator: np.random.Generator) -> Interval:
    """The interval of the records."""
    del generator
    interval = repeats_interval(values.tolist())
    assert interval is not None
    return interval


def percentile(values: np.ndarray, generator: np.random.Generator) -> Interval:
    """Percentile bootstrap of the median."""
    seed = int(generator.integers(2**31))
    interval = bootstrap_interval(values, lambda draws: np.median(draws, axis=1), seed=seed)
    assert interval is not None
    return interval


def studentised(values: np.ndarray, generator: np.random.Generator) -> Interval:
    """Bootstrap-t of the mean logarithm; resamples without spread count as infinitely far off."""
    logs, count = np.log(values), len(values)
    draws = logs[generator.integers(0, count, size=(_RESAMPLES, count))]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of one value only has no spread
        ratios = (draws.mean(axis=1) - logs.mean()) / (draws.std(axis=1, ddof=1) / np.sqrt(count))
    ratios = np.where(np.isnan(ratios), 0.0, ratios)
    low, high = np.quantile(ratios, [0.025, 0.975], method="closest_observation")
    error = logs.std(ddof=1) / np.sqrt(count)
    with np.errstate(over="ignore"):
        low, high = np.exp(logs.mean() - np.array([high, low]) * error)
    return float(low), float(high)


NOISES: dict[str, Noise] = {"normal": normal, "log-normal": skewed, "disturbed": delayed, "drifting": drifting}
INTERVALS: dict[str, Callable[[np.ndarray, np.random.Generator], Interval]] = {
    "Student's t": student,
    "bootstrap": percentile,
    "bootstrap-t": studentised,
}


def coverage(noise: str, interval: str, repeats: int, draws: int, *, seed: int = 0) -> tuple[float, float]:
    """Simulates.

    Args:
        noise: A key of `NOISES`.
        interval: A key of `INTERVALS`.
        repeats: Repeats of one measurement.
        draws: Simulated measurements.
        seed: Seed of the noise.

    Returns:
        Share of the intervals that hold the truth of 1, and the median ratio of their ends.
    """
    generator = np.random.default_rng(seed)
    found = [INTERVALS[interval](NOISES[noise](generator, repeats), generator) for _ in range(draws)]
    held = sum(low <= 1 <= high for low, high in found)
    return held / draws, float(np.median([high / low if low > 0 else np.inf for low, high in found]))


def main() -> None:
    """Prints a table."""
    parser = new_parser(__doc__)
    parser.add_argument("--draws", type=whole(), default=5000, help="simulated measurements of each kind")
    parser.add_argument(
        "--repeats", type=several(whole(2)), default="3,5,10", help="numbers of repeats of a measurement"
    )
    arguments = parser.parse_args()
    print("| noise | repeats | " + " | ".join(INTERVALS) + " |")
    print("|---" * (2 + len(INTERVALS)) + "|")
    for noise in NOISES:
        for repeats in arguments.repeats:
            cells = []
            for interval in INTERVALS:
                held, width = coverage(noise, interval, repeats, arguments.draws)
                cells.append(f"{100 * held:.0f} % ({f'{width:.2f}x' if np.isfinite(width) else 'no end'})")
            print(f"| {noise} | {repeats} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
