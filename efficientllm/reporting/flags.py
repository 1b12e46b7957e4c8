"""What speaks against a figure: noise between its repeats, and doubts of its sensor or its surroundings."""

from collections.abc import Iterable
from dataclasses import dataclass

from efficientllm import metrics
from efficientllm.ranking.results import Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import cell_labels, cells_listing
from efficientllm.reporting.text import listing, number

_DOUBT = "DOUBTFUL: "


def split_method(method: str) -> tuple[str, list[str]]:
    """Splits the method of a record's value into how it was taken and the doubts that it names (docs/measurement.md)."""
    parts = method.split("; ")
    return (
        "; ".join(part for part in parts if not part.startswith(_DOUBT)),
        [part.removeprefix(_DOUBT) for part in parts if part.startswith(_DOUBT)],
    )


def doubts(result: Result) -> list[str]:
    """Lists the doubts of a figure; none where it has no value."""
    return split_method(result.method)[1] if result.method is not None else []


def noise(result: Result) -> str | None:
    """Says how much the repeats vary, where that is more than the protocol allows."""
    if not result.noisy:
        return None
    variation = result.coefficient_of_variation
    return "repeats vary" if variation is None else f"coefficient of variation {number(100 * variation, 2)} %"


@dataclass(frozen=True)
class Flag:
    """Figures of an axis that share a flag and its reason."""

    kind: str
    reason: str
    labels: str
    metrics: str


def flags(evidence: Evidence) -> list[Flag]:
    """Lists every doubtful and every noisy figure, those with the same reason together."""
    distinct = {(result.axis, result.cell, result.metric): result for result in evidence.results}.values()
    doubtful: dict[tuple[str, str], dict[str, list[str]]] = {}
    noisy: dict[tuple[str, str], list[str]] = {}
    for result in distinct:
        symbol = metrics.metric(result.metric).symbol
        for reason in doubts(result):
            doubtful.setdefault((result.axis, reason), {}).setdefault(result.cell, []).append(symbol)
        if result.noisy:
            variation = result.coefficient_of_variation
            text = symbol if variation is None else f"{symbol} {number(100 * variation, 2)} %"
            noisy.setdefault((result.axis, result.cell), []).append(text)
    listed = []
    for (axis, reason), cells in doubtful.items():
        listed.append(
            Flag("doubtful", reason, cells_listing(evidence.rows, axis, cells), listing(_united(cells.values())))
        )
    for (axis, cell), texts in noisy.items():
        listed.append(Flag("noisy", "repeats vary by", cell_labels(evidence.rows, axis, cell), listing(texts)))
    return listed


def _united(columns: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(symbol for column in columns for symbol in column))
