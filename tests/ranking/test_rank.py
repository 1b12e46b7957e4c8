"""Ranks and ties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.ranking.rank import Estimate, ranks, ties

NUMBERS = st.integers(-20, 20).map(float)
COLUMNS = st.lists(st.none() | NUMBERS, max_size=8)
DIRECTIONS = st.sampled_from(["lower", "higher"])
ESTIMATES = st.builds(
    lambda value, below, above: Estimate(value, value - below, value + above),
    NUMBERS, st.integers(0, 5), st.integers(0, 5),
)  # fmt: skip


def test_competition_ranks() -> None:
    assert ranks([3.0, 1.0, 2.0, 2.0, None, 9.0], "lower") == [4, 1, 2, 2, None, 5]
    assert ranks([3.0, 1.0, 2.0, 2.0, None, 9.0], "higher") == [2, 5, 3, 3, None, 1]
    assert ranks([], "lower") == []
    assert ranks([None], "lower") == [None]
    assert ranks([7.0, 7.0], "higher") == [1, 1]


@given(COLUMNS, DIRECTIONS)
def test_rank_counts_the_better_rows(values, direction) -> None:
    standings = ranks(values, direction)
    for value, standing in zip(values, standings, strict=True):
        assert (value is None) == (standing is None)
    for value, standing in zip(values, standings, strict=True):
        for other, other_standing in zip(values, standings, strict=True):
            if value is None or other is None:
                continue
            better = value < other if direction == "lower" else value > other
            assert better == (standing < other_standing)
    assert not any(values) or min(standing for standing in standings if standing is not None) == 1


@given(COLUMNS, DIRECTIONS, st.sampled_from([1e-9, 0.5, 1024.0]), st.randoms())
def test_unit_and_order_of_rows_do_not_matter(values, direction, factor, random) -> None:
    standings = ranks(values, direction)
    assert ranks([None if value is None else value * factor for value in values], direction) == standings
    order = list(range(len(values)))
    random.shuffle(order)
    assert ranks([values[position] for position in order], direction) == [standings[position] for position in order]


@given(COLUMNS)
def test_direction_flip(values) -> None:
    flipped = [None if value is None else -value for value in values]
    assert ranks(values, "lower") == ranks(flipped, "higher")


def test_text_for_a_terminal_has_the_interval_where_there_is_one() -> None:
    assert Estimate(1.23456, 1.1, 1.30001).text() == "1.235 [1.1, 1.3]"
    assert Estimate(1.23456).text() == "1.235"


def test_ties_are_overlapping_intervals_and_not_transitive() -> None:
    a, b, c = Estimate(1.0, 0.8, 1.4), Estimate(1.6, 1.3, 2.1), Estimate(2.4, 2.0, 2.6)
    assert ties([a, b, c]) == [(1,), (0, 2), (1,)]
    assert ties([a, None, c]) == [(), (), ()]


@pytest.mark.parametrize(
    ("first", "second", "tied"),
    [
        (Estimate(1.0, 0.9, 1.1), Estimate(1.2, 1.1, 1.3), True),  # they touch
        (Estimate(1.0, 0.9, 1.1), Estimate(1.2, 1.11, 1.3), False),
        (Estimate(1.0), Estimate(1.0), True),
        (Estimate(1.0), Estimate(1.0000001), False),
        (Estimate(14.6003, 14.6003, 14.6004), Estimate(14.5998, 14.5998, 14.5998), True),  # no table shows a difference
        (Estimate(14.6003, 14.6003, 14.6004), Estimate(14.62, 14.62, 14.62), False),
        (Estimate(-14.6003, -14.6004, -14.6003), Estimate(-14.5998, -14.5998, -14.5998), True),
        (Estimate(1.0), Estimate(1.2, 0.95, 1.3), True),  # a bare value inside an interval
        (Estimate(2.0, 0.9, 1.1), Estimate(1.5), True),  # an interval reaches at least to its own estimate
    ],
)
def test_what_an_interval_is(first, second, tied) -> None:
    assert first.overlaps(second) is tied
    assert second.overlaps(first) is tied


@given(st.lists(st.none() | ESTIMATES, max_size=7))
def test_ties_are_symmetric_and_never_with_oneself(estimates) -> None:
    neighbours = ties(estimates)
    for own, others in enumerate(neighbours):
        assert own not in others
        assert all(own in neighbours[other] for other in others)
        if estimates[own] is None:
            assert others == ()
        for other, estimate in enumerate(estimates):
            if other != own and estimate is not None and estimates[own] is not None:
                assert (other in others) or estimate.value != estimates[own].value
