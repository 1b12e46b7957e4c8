"""What speaks against a figure: noise between its repeats, and doubts of its sensor or its surroundings."""

from collections.abc import Iterable
from dataclasses import dataclass

from efficientllm import metrics, registry
from efficientllm.ranking.results import Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import cell_labels, cells_listing, results_by_cell
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
    variation = _variation(result)
    return f"coefficient of variation {variation}" if variation else "repeats vary"


def _variation(result: Result) -> str | None:
    variation = result.coefficient_of_variation
    return None if variation is None else f"{number(100 * variation, 2)} %"


@dataclass(frozen=True)
class Flag:
    """Figures of an axis that share a flag and its reason."""

    kind: str
    reason: str
    labels: str
    metrics: str


def flags(evidence: Evidence) -> list[Flag]:
    """Lists every doubtful and every noisy figure, those with the same reason together."""
    doubtful: dict[tuple[registry.Axis, str], dict[str, list[str]]] = {}
    noisy: dict[tuple[registry.Axis, str], list[str]] = {}
    for (axis, cell, key), result in results_by_cell(evidence).items():
        symbol = metrics.metric(key).symbol
        for reason in doubts(result):
            doubtful.setdefault((axis, reason), {}).setdefault(cell, []).append(symbol)
        if result.noisy:
            noisy.setdefault((axis, cell), []).append(f"{symbol} {_variation(result) or ''}".rstrip())
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
