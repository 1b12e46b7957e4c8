"""The normalized values of every group, a small bar chart per metric."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from efficientllm import metrics
from efficientllm.ranking.results import AVERAGE_RANK
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.figures import bars
from efficientllm.reporting.groups import Group, groups_of
from efficientllm.reporting.text import identifier, listing


@dataclass(frozen=True)
class NormalizedFigure:
    """A group's bars, and the numbers behind them."""

    id: str
    group: Group
    finding: str
    panels: list[Markup]
    heads: list[str]
    rows: list[tuple[str, list[str | None]]]


def normalized_figures(evidence: Evidence) -> Iterator[NormalizedFigure]:
    """Draws, group by group, the normalized values of every ranked metric."""
    for group in groups_of(evidence):
        entries = metrics.ranked_metrics(group.axis)
        columns = [[group.standings[row.technique, entry.key] for row in group.rows] for entry in entries]
        labels = [row.label for row in group.rows]
        key = group.id("bars")
        best = [row.label for row in group.rows if group.standings[row.technique, AVERAGE_RANK].rank == 1]
        if len(group.rows) == 1:
            finding = "The only row of its group: nothing to compare it with."
        elif best:
            finding = f"Best average rank{', shared' if len(best) > 1 else ''}: {listing(best)}."
        else:
            finding = "No row of this group could be ranked."
        yield NormalizedFigure(
            key, group, finding,
            [
                bars(
                    identifier(key, entry.key), f"{group.title}: {entry.label}, normalized", entry.symbol, labels,
                    [line.normalized for line in column], [line.tier for line in column],
                )
                for entry, column in zip(entries, columns, strict=True)
            ],
            [entry.symbol for entry in entries],
            [
                (label, [None if column[at].normalized is None else f"{column[at].normalized:.3f}" for column in columns])
                for at, label in enumerate(labels)
            ],
        )  # fmt: skip
