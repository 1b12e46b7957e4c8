"""Normalization: the paper's formula, and what must not matter to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.ranking.normalize import normalize

NUMBERS = st.floats(min_value=-1e6, max_value=1e6).map(lambda value: round(value, 3))
COLUMNS = st.lists(st.none() | NUMBERS, max_size=8)
DIRECTIONS = st.sampled_from(["lower", "higher"])


def test_formula_on_figures_worked_by_hand() -> None:
    # perplexities of MQA, GQA, MLA, NSA in arXiv 2505.13840: 0.1 + 0.9 * (8.23 - v) / (8.23 - 7.79)
    assert normalize([8.23, 8.09, 7.79, 7.82], "lower") == pytest.approx([0.1, 0.386364, 1.0, 0.938636], abs=1e-6)
    assert normalize([10.0, 15.0, 20.0], "higher") == pytest.approx([0.1, 0.55, 1.0])


@given(COLUMNS, DIRECTIONS)
def test_range_ends_and_gaps(values, direction) -> None:
    scaled = normalize(values, direction)
    assert [item is None for item in scaled] == [item is None for item in values]
    known = [item for item in scaled if item is not None]
    if known:
        assert max(known) == 1.0
        assert all(0.1 <= item <= 1.0 for item in known)
        if len({item for item in values if item is not None}) > 1:
            assert min(known) == pytest.approx(0.1)
        else:
            assert set(known) == {1.0}


@given(COLUMNS, DIRECTIONS, st.floats(min_value=1e-3, max_value=1e3), st.sampled_from([0.0, 273.15]))
def test_change_of_unit_does_not_matter(values, direction, factor, offset) -> None:
    converted = [None if value is None else value * factor + offset for value in values]
    for before, after in zip(normalize(values, direction), normalize(converted, direction), strict=True):
        # values that a unit's rounding merges (1e6 and 1e6 + 0.001 in another unit) may move by that rounding
        assert before == after or after == pytest.approx(before, abs=1e-3)


@given(COLUMNS, DIRECTIONS, st.randoms())
def test_order_of_rows_does_not_matter(values, direction, random) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    scaled = normalize(values, direction)
    assert normalize([values[position] for position in order], direction) == [scaled[position] for position in order]


@given(COLUMNS)
def test_negated_values_in_the_other_direction_are_the_same(values) -> None:
    flipped = [None if value is None else -value for value in values]
    assert normalize(values, "lower") == normalize(flipped, "higher")


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_one_row_and_no_row(direction) -> None:
    assert normalize([3.0], direction) == [1.0]
    assert normalize([None, 3.0, None], direction) == [None, 1.0, None]
    assert normalize([None], direction) == [None]
    assert normalize([], direction) == []
