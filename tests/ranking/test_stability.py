"""Rank stability, against closed forms and against what must not matter to it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllm.ranking.rank import Estimate, ties
from efficientllm.ranking.stability import DRAWS, highest_score_shares, rank_stability

NUMBERS = st.integers(-20, 20).map(float)
ESTIMATES = st.builds(
    lambda value, below, above, n: Estimate(value, value - below, value + above, n),
    NUMBERS, st.integers(0, 5), st.integers(0, 5), st.sampled_from([None, 1, 3, 200]),
)  # fmt: skip
COLUMNS = st.lists(st.none() | ESTIMATES, max_size=6)
FEW = 200
ERROR = 4 * 0.5 / math.sqrt(DRAWS)
"""Four standard errors of a share."""


def test_two_normal_rows_have_the_probability_of_the_difference() -> None:
    # half widths of 1.96 are standard deviations of 1; the difference of 1 is normal with deviation sqrt(2)
    expected = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    found = rank_stability([Estimate(0.0, -1.96, 1.96), Estimate(1.0, -0.96, 2.96)], "lower")
    assert found == pytest.approx([expected, expected], abs=ERROR)


def test_what_is_tied_by_the_resolution_is_not_sure() -> None:
    """Two memories whose repeats agree to the last byte, 0.02 % apart: a tie, and so no rank that always holds."""
    column = [Estimate(2.537301, 2.537301, 2.537301, 3), Estimate(2.537789, 2.537789, 2.537789, 3)]
    assert ties(column) == [(1,), (0,)]
    found = rank_stability(column, "lower")
    assert all(share is not None and 0.5 < share < 0.95 for share in found)
    first, second = highest_score_shares({"memory": (column, "lower")}, {"memory": 1.0})
    assert first is not None and second is not None and second > 0.05
    apart = [Estimate(1.0, 1.0, 1.0, 200), Estimate(1.01, 1.01, 1.01, 200)]
    assert rank_stability(apart, "lower") == [1.0, 1.0]


def test_few_repeats_have_heavier_tails() -> None:
    # Cauchy with two repeats: the chance to pass a fixed neighbour at the interval's end is 2.5 %, at a tenth of it ...
    from scipy.special import stdtr, stdtrit

    reach = float(stdtrit(1, 0.975))
    found = rank_stability([Estimate(0.0, -1.0, 1.0, 2), Estimate(0.1)], "lower")
    assert found == pytest.approx([float(stdtr(1, 0.1 * reach))] * 2, abs=ERROR)
    end = rank_stability([Estimate(0.0, -1.0, 1.0, 2), Estimate(1.0)], "lower")
    assert end == pytest.approx([0.975] * 2, abs=ERROR)


def test_each_side_of_a_skewed_interval_counts_for_itself() -> None:
    found = rank_stability([Estimate(0.0, -0.001, 9.0), Estimate(0.5)], "lower")
    assert found == pytest.approx([0.5 + 0.5 * math.erf(0.5 * 1.96 / 9 / math.sqrt(2))] * 2, abs=ERROR)


def test_far_apart_and_without_doubt() -> None:
    assert rank_stability([Estimate(1.0, 0.9, 1.1), None, Estimate(9.0, 8.9, 9.1)], "higher") == [1.0, None, 1.0]
    assert rank_stability([Estimate(1.0), Estimate(2.0)], "lower") == [None, None], "no interval says nothing"
    assert rank_stability([], "lower") == []
    assert rank_stability([Estimate(1.0, 0.5, 2.0), None], "lower") == [None, None], "a single rank was not compared"


@settings(max_examples=60, deadline=None)
@given(COLUMNS, st.sampled_from(["lower", "higher"]), st.randoms())
def test_order_unit_and_direction_do_not_matter(column, direction, random) -> None:
    found = rank_stability(column, direction, draws=FEW)
    assert all(share is None or 0 <= share <= 1 for share in found)
    order = list(range(len(column)))
    random.shuffle(order)
    assert rank_stability([column[position] for position in order], direction, draws=FEW) == [
        found[position] for position in order
    ]
    scaled = [e and Estimate(e.value * 1024, e.low * 1024, e.high * 1024, e.n) for e in column]
    assert rank_stability(scaled, direction, draws=FEW) == found
    flipped = [e and Estimate(-e.value, -e.high, -e.low, e.n) for e in column]
    assert rank_stability(flipped, "lower" if direction == "higher" else "higher", draws=FEW) == found


def test_of_one_metric_the_highest_score_is_the_first_rank() -> None:
    column = [Estimate(0.0, -1.96, 1.96), Estimate(1.0, -0.96, 2.96)]
    expected = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    found = highest_score_shares({"loss": (column, "lower")}, {"loss": 1.0})
    assert found == pytest.approx([expected, 1 - expected], abs=ERROR)


def test_metrics_that_are_off_together_do_not_average_out() -> None:
    """Three names of one latency leave the winner as unsure as one; three that are independent would make it surer."""
    column = [Estimate(0.0, -1.96, 1.96), Estimate(1.0, -0.96, 2.96)]
    one = highest_score_shares({"latency": (column, "lower")}, {"latency": 1.0})
    three = dict.fromkeys(("latency", "seconds", "joules"), (column, "lower"))
    assert highest_score_shares(three, dict.fromkeys(three, 1.0)) == one  # type: ignore[arg-type]
    (first, _) = highest_score_shares(three, dict.fromkeys(three, 1.0), alone=["seconds", "joules"])  # type: ignore[arg-type]
    assert first is not None and one[0] is not None and first > one[0]


def test_shares_where_values_or_intervals_are_missing() -> None:
    sure, none = Estimate(1.0, 0.9, 1.1), Estimate(2.0)
    assert highest_score_shares({"loss": ([sure, None, Estimate(9.0, 8.9, 9.1)], "lower")}, {"loss": 1.0}) == [
        1.0,
        None,
        0.0,
    ]
    assert highest_score_shares({"loss": ([none, none], "lower")}, {"loss": 1.0}) == [None, None]
    assert highest_score_shares({"loss": ([sure, sure], "lower"), "speed": ([none, none], "higher")}, {"speed": 1.0}) == [
        None, None,
    ]  # fmt: skip
    assert highest_score_shares({}, {}) == []


def test_rows_of_the_same_figures_have_the_same_share() -> None:
    unsure = (Estimate(0.0, -1.0, 3.0), Estimate(1.0, 1.0, 1.0))
    for n in (None, 1):
        rows = [unsure, tuple(replace(estimate, n=n) for estimate in unsure), (Estimate(0.5), Estimate(0.5))]
        columns = {"loss": ([one for one, _ in rows], "lower"), "speed": ([two for _, two in rows], "higher")}
        first, second, _ = highest_score_shares(columns, {"loss": 1.0, "speed": 1.0})  # type: ignore[arg-type]
        assert first == second


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ESTIMATES, ESTIMATES), min_size=1, max_size=5), st.randoms())
def test_highest_scores_do_not_depend_on_the_order(rows: list[tuple[Estimate, Estimate]], random: object) -> None:
    def shares(given: list[tuple[Estimate, Estimate]]) -> list[float | None]:
        columns = {"loss": ([one for one, _ in given], "lower"), "speed": ([two for _, two in given], "higher")}
        return highest_score_shares(columns, {"loss": 1.0, "speed": 2.0}, alone=["loss"], draws=FEW)  # type: ignore[arg-type]

    found = shares(rows)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = shares([rows[place] for place in order])
    assert moved == [found[place] for place in order]
    if None not in found:
        assert sum(share for share in found if share is not None) == pytest.approx(1.0)
