"""The ranks that the paper published, and how far a run's ranks agree with them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

from efficientllm.ranking.results import Ranked

_FILE = "paper_ranks.json"


@dataclass(frozen=True)
class Disagreement:
    """Two techniques that a run orders the other way round than the paper does.

    Args:
        paper_prefers: The technique with the better rank in the paper.
        run_prefers: The technique with the better rank in the run.
        tied: Whether they are tied in the run: their 95 % intervals overlap.
    """

    paper_prefers: str
    run_prefers: str
    tied: bool


@dataclass(frozen=True)
class Agreement:
    """How far the ranks of a run agree with the paper's in one group and metric.

    Args:
        axis: The axis.
        group: The group.
        metric: The metric that stands in the paper's column.
        tau: Kendall's tau-b over the techniques that both rank: 1 for the same order, -1 for the reverse.
        techniques: Those techniques, in the run's order.
        disagreements: The pairs that the two order differently; a pair to which either gives equal ranks is none.
        tied: How many of the other pairs are tied in the run.
        reason: Why there is no tau.
    """

    axis: str
    group: str
    metric: str
    tau: float | None
    techniques: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]
    tied: int
    reason: str | None = None


@cache
def paper_source() -> str:
    """Returns the publication that the ranks are taken from."""
    return str(_content()["source"])


@cache
def paper_ranks() -> dict[tuple[str, str, str], dict[str, int]]:
    """Returns the ranks that the paper's authors gave: by axis, group and metric, for each technique; 1 is the best.

    Names are those of the registry of rows and of the metric registry: the paper's performance column is the metric of
    `metrics.PERFORMANCE`, its TT is `training_throughput` (the paper divides it by the model's parameters). Cells that
    the authors left at a constant placeholder are absent.
    """
    return {
        (entry["axis"], entry["group"], metric): dict(ranks)
        for entry in _content()["groups"]
        for metric, ranks in entry["ranks"].items()
    }


def paper_agreement(ranking: Iterable[Ranked]) -> list[Agreement]:
    """Compares a run's ranks with the paper's, in every group and metric in which the run has lines and the paper ranks.

    Args:
        ranking: Output of `results.rank`, or the lines of ranking.csv.

    Returns:
        One agreement per group and metric, in the paper's order.
    """
    columns: dict[tuple[str, str, str], dict[str, Ranked]] = {}
    for line in ranking:
        columns.setdefault((line.axis, line.group, line.metric), {})[line.technique] = line
    return [
        _agreement(place, published, columns[place]) for place, published in paper_ranks().items() if place in columns
    ]


def _agreement(place: tuple[str, str, str], published: dict[str, int], column: dict[str, Ranked]) -> Agreement:
    found = {name: line.rank for name, line in column.items() if name in published and line.rank is not None}
    pairs = [
        (better, worse)
        for first, second in combinations(found, 2)
        for better, worse in ((first, second), (second, first))
        if published[better] < published[worse] and found[better] > found[worse]
    ]
    disagreements = tuple(Disagreement(paper, run, paper in column[run].tied_with) for paper, run in pairs)
    tau, reason = _tau([published[name] for name in found], list(found.values()))
    tied = sum(second in column[first].tied_with for first, second in combinations(found, 2))
    others = tied - sum(pair.tied for pair in disagreements)
    return Agreement(*place, tau, tuple(found), disagreements, others, reason)


def _tau(published: list[int], found: list[int]) -> tuple[float | None, str | None]:
    if len(found) < 2:
        return None, f"this run ranks {'only one' if found else 'none'} of the paper's techniques"
    from scipy.stats import kendalltau

    tau = float(kendalltau(published, found).statistic)
    return (None, "all ranks are equal, so there is no order to compare") if math.isnan(tau) else (tau, None)


@cache
def _content() -> dict[str, Any]:
    return dict(json.loads(resources.files("efficientllm.ranking").joinpath(_FILE).read_text(encoding="utf-8")))
