"""The colours of the ranks: high, medium and low tier."""

from collections.abc import Iterable, Sequence
from typing import Literal

Tier = Literal["high", "medium", "low"]
TIERS: tuple[Tier, ...] = ("high", "medium", "low")


def tier_bounds(ranked: int) -> tuple[int, int]:
    """Returns the last rank of the high tier and the first rank of the low tier.

    EfficientLLM (arXiv 2505.13840) colours 3 ranks as 1 | 2 | 3, 4 ranks as 1 | 2-3 | 4 and 7 ranks as 1-2 | 3-5 | 6-7.
    The rule behind all three, used for every size: the first third is high and the last third is low, each rounded down
    but at least one rank; the rest is medium. So 2 ranks are 1 | - | 2, 5 are 1 | 2-4 | 5 and 6 are 1-2 | 3-4 | 5-6.

    Args:
        ranked: How many rows of the group have a rank; at least 2.

    Raises:
        ValueError: A single row has nothing to be compared with, so no tier.
    """
    if ranked < 2:
        raise ValueError("tiers need at least two ranked rows")
    width = max(1, ranked // 3)
    return width, ranked - width + 1


def tiers(ranks: Sequence[int | None]) -> list[Tier | None]:
    """Assigns the ranks of one group and metric to tiers.

    Args:
        ranks: Competition ranks; None where a row has none.

    Returns:
        The tiers in the given order; None where a row has no rank, or is the only one with a rank.
    """
    ranked = sum(rank is not None for rank in ranks)
    if ranked < 2:
        return [None] * len(ranks)
    last_high, first_low = tier_bounds(ranked)
    return [
        None if rank is None else "high" if rank <= last_high else "low" if rank >= first_low else "medium"
        for rank in ranks
    ]


def is_tied_across(tier: str | None, others: Iterable[str | None]) -> bool:
    """Whether a row's tier is not established: one of the high tier is tied with one of the low tier, or the other way round.

    Args:
        tier: The row's.
        others: Those of the rows that it is tied with.
    """
    opposite = {"high": "low", "low": "high"}.get(tier or "")
    return opposite is not None and opposite in others
