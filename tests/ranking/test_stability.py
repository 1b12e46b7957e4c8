"""Rank stability, against closed forms and against what must not matter to it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.stability import DRAWS, rank_stability

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
    assert rank_stability([Estimate(1.0, 0.5, 2.0)], "lower") == [1.0]


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
