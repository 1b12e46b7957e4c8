"""Intervals of a few repeats: how often they hold the truth, and what they do in corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllm.measurement.statistics import repeats_interval, share_interval, single, summarize


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_interval_holds_the_truth_in_95_of_100(repeats: int, spread: float) -> None:
    generator = np.random.default_rng(0)
    draws = 3000
    samples = np.exp(spread * generator.standard_normal((draws, repeats)))
    held = 0
    for sample in samples:
        interval = repeats_interval(sample.tolist())
        assert interval is not None
        held += interval[0] <= 1 <= interval[1]
    assert 0.95 - 4 * (0.05 * 0.95 / draws) ** 0.5 <= held / draws <= 0.975


def test_smallest_to_largest_would_not() -> None:
    """What a percentile bootstrap comes to with three repeats."""
    samples = np.exp(0.1 * np.random.default_rng(0).standard_normal((3000, 3)))
    assert np.mean((samples.min(axis=1) <= 1) & (samples.max(axis=1) >= 1)) < 0.8


def test_known_interval() -> None:
    low, high = repeats_interval([1.0, np.e, np.e**2])  # type: ignore[misc]
    assert np.log(high) - 1 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert np.log(low) + np.log(high) == pytest.approx(2.0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=9))
@settings(max_examples=50, deadline=None)
def test_seconds_per_call_and_calls_per_second_agree(repeats: list[float]) -> None:
    low, high = repeats_interval(repeats)  # type: ignore[misc]
    inverse = repeats_interval([1 / value for value in repeats])
    if len(repeats) % 2:  # the median of an even number is a mean, which has no such symmetry
        assert inverse == pytest.approx((1 / high, 1 / low))
    assert low <= float(np.median(repeats)) <= high


def test_figures_that_are_not_positive() -> None:
    low, high = repeats_interval([-1.0, 0.0, 1.0])  # type: ignore[misc]
    assert high == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert low == -high
    assert repeats_interval([0.0, 0.0]) == (0.0, 0.0)


def test_one_repeat_has_no_interval() -> None:
    assert repeats_interval([1.0]) is None
    value = summarize("average_latency", [1.0], source="measured", method="t")
    assert (value.ci_low, value.ci_high) == (None, None)


def test_median_of_two_heaps_stays_inside() -> None:
    repeats = [1.0] * 9 + [2.0] * 8
    value = summarize("average_latency", repeats, source="measured", method="t")
    assert value.value == 1.0
    assert value.ci_low is not None
    assert value.ci_low <= 1.0


def test_the_interval_of_a_share_ends_at_the_whole() -> None:
    repeats = [97.0, 99.0, 99.8]
    busy = summarize("processor_compute_utilization", repeats, source="measured", method="made up")
    latency = summarize("average_latency", repeats, source="measured", method="made up")
    assert busy.ci_high == 100.0
    assert latency.ci_high is not None and latency.ci_high > 100.0
    assert busy.ci_low == latency.ci_low


def test_an_accuracy_over_seeds_stays_between_none_and_all() -> None:
    for key in ("task_accuracy", "exact_match"):
        high = summarize(key, [96.0, 99.5, 92.0], source="measured", method="made up")
        assert high.ci_low is not None and high.ci_low < 92.0
        assert high.ci_high == 100.0
        low = summarize(key, [0.0, 2.0, 1.0], source="measured", method="made up")
        assert low.ci_low == 0.0
        assert low.ci_high is not None and 2.0 < low.ci_high < 100.0
    change = summarize("task_accuracy_change", [0.0, 2.0, 1.0], source="measured", method="made up")
    assert change.ci_low is not None and change.ci_low < 0, "a difference may be negative"


@pytest.mark.parametrize("examples", [16, 256, 512])
def test_the_interval_of_a_share_covers_it(examples: int) -> None:
    """Coverage by enumeration: 95 % on average over true shares, of which few are missed often."""
    from scipy.stats import binom

    outcomes = [np.repeat([1.0, 0.0], [yes, examples - yes]) for yes in range(examples + 1)]
    low, high = np.array([share_interval(outcome) for outcome in outcomes]).T
    assert all(low <= np.arange(examples + 1) / examples) and all(high >= np.arange(examples + 1) / examples)
    shares = np.linspace(0.002, 0.998, 167)
    weights = binom.pmf(np.arange(examples + 1)[:, None], examples, shares)
    covered = (weights * ((low[:, None] <= shares) & (shares <= high[:, None]))).sum(axis=0)
    assert 0.94 < covered.mean() < 0.97
    assert covered.min() > 0.84


def test_the_interval_of_none_and_of_all_has_a_width() -> None:
    none, every = share_interval(np.zeros(256)), share_interval(np.ones(256))
    assert none is not None and every is not None
    assert none[0] == 0 and 0.009 < none[1] < 0.011
    assert every == pytest.approx((1 - none[1], 1))
    assert share_interval(np.ones(1)) is None


def test_a_bootstrap_that_leaves_its_value_out_is_extended_to_it() -> None:
    for interval, ends in (
        ((1.5, 2.0), (1.0, 2.0)),
        ((0.0, 0.5), (0.0, 1.0)),
        ((0.5, 2.0), (0.5, 2.0)),
        (None, (None, None)),
    ):
        value = single("perplexity", 1.0, method="made up", n=9, interval=interval)
        assert (value.value, value.ci_low, value.ci_high) == (1.0, *ends)
