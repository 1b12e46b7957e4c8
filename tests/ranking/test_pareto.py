"""The Pareto front."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.ranking.pareto import pareto_front

DIRECTIONS = st.lists(st.sampled_from(["lower", "higher"]), min_size=2, max_size=2)
POINTS = st.lists(st.tuples(*[st.none() | st.integers(-4, 4).map(float)] * 2), max_size=8)


def test_worked_by_hand() -> None:
    # loss (lower) and tokens/s (higher): b is beaten by a in both, d by c at equal loss, e has no loss
    points = [(1.0, 9.0), (2.0, 8.0), (0.5, 3.0), (0.5, 2.0), (None, 99.0)]
    assert pareto_front(points, ["lower", "higher"]) == [True, False, True, False, None]
    assert pareto_front(points, ["lower", "lower"]) == [False, False, False, True, None]


def test_equal_rows_do_not_beat_each_other() -> None:
    assert pareto_front([(1.0, 1.0), (1.0, 1.0)], ["lower", "lower"]) == [True, True]


def test_one_row_and_no_row() -> None:
    assert pareto_front([(3.0,)], ["lower"]) == [True]
    assert pareto_front([], ["lower"]) == []
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pareto_front([(3.0, 1.0)], ["lower"])


@given(POINTS, DIRECTIONS)
def test_every_row_off_the_front_is_beaten_by_one_on_it(points, directions) -> None:
    front = pareto_front(points, directions)

    def beats(first, second) -> bool:
        signs = [-1 if direction == "higher" else 1 for direction in directions]
        own, other = ([s * v for s, v in zip(signs, point, strict=True)] for point in (first, second))
        return own != other and all(a <= b for a, b in zip(own, other, strict=True))

    kept = [point for point, on in zip(points, front, strict=True) if on]
    for point, on in zip(points, front, strict=True):
        assert (on is None) == (None in point)
        if on is not None:
            assert on == (not any(beats(other, point) for other in kept))


@given(POINTS, DIRECTIONS, st.sampled_from([0.5, 1024.0]), st.randoms())
def test_unit_order_and_direction_do_not_matter(points, directions, factor, random) -> None:
    front = pareto_front(points, directions)
    order = list(range(len(points)))
    random.shuffle(order)
    shuffled = [tuple(v if v is None else v * factor for v in points[position]) for position in order]
    assert pareto_front(shuffled, directions) == [front[position] for position in order]
    flipped = ["lower" if direction == "higher" else "higher" for direction in directions]
    assert pareto_front([tuple(v if v is None else -v for v in p) for p in points], flipped) == front
