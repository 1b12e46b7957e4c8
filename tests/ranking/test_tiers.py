"""Tiers: the paper's three cases, and the rule for all others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.ranking.tiers import TIERS, tier_bounds, tiers


@pytest.mark.parametrize(
    ("ranked", "high", "medium", "low"),
    [
        (3, [1], [2], [3]),  # quantization
        (4, [1], [2, 3], [4]),  # architecture
        (7, [1, 2], [3, 4, 5], [6, 7]),  # tuning
        (2, [1], [], [2]),
        (5, [1], [2, 3, 4], [5]),
        (6, [1, 2], [3, 4], [5, 6]),
    ],
)
def test_ranks_per_tier(ranked, high, medium, low) -> None:
    found = tiers(list(range(1, ranked + 1)))
    assert [[rank for rank, tier in enumerate(found, 1) if tier == name] for name in TIERS] == [high, medium, low]


@given(st.integers(2, 60))
def test_high_and_low_are_mirror_images(ranked) -> None:
    last_high, first_low = tier_bounds(ranked)
    assert 1 <= last_high < first_low <= ranked
    assert last_high == ranked - first_low + 1


def test_gaps_ties_and_a_single_row() -> None:
    assert tiers([None, 1, None]) == [None, None, None]
    assert tiers([]) == []
    assert tiers([1, None, 2, 3]) == ["high", None, "medium", "low"]
    assert tiers([1, 1, 1]) == ["high", "high", "high"]
    assert tiers([1, 2, 3, 3]) == ["high", "medium", "medium", "medium"]
    with pytest.raises(ValueError, match="at least two"):
        tier_bounds(1)
