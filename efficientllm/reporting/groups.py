"""Rows by the group that they compete in, as every figure of the report needs them."""

from collections.abc import Iterable
from dataclasses import dataclass

from efficientllm import metrics, registry
from efficientllm.ranking.results import Ranked, Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.text import Scale, column_scale, identifier, listing


@dataclass(frozen=True)
class Group:
    """The rows of one group in the table's order, with their results and standings by technique and metric."""

    axis: registry.Axis
    key: str
    label: str
    rows: list[registry.Row]
    results: dict[tuple[str, str], Result]
    standings: dict[tuple[str, str], Ranked]

    @property
    def title(self) -> str:
        """Names axis and group."""
        return f"{registry.AXIS_LABELS[self.axis]}: {self.label}"

    def id(self, prefix: str) -> str:
        """Builds an HTML id that no other group has."""
        return identifier(prefix, self.axis, self.key)

    def name(self, technique: str) -> str:
        """Name of a technique on the page."""
        return next(row.label for row in self.rows if row.technique == technique)

    def column(self, metric: str) -> list[Result]:
        """The rows' results in one metric."""
        return [result for (_, key), result in self.results.items() if key == metric]

    def scale(self, metric: str) -> Scale:
        """The prefix under which the group's values of a metric are shown."""
        return column_scale((result.value for result in self.column(metric)), metrics.metric(metric).unit)


def groups_of(evidence: Evidence) -> list[Group]:
    """Lists the groups in the table's order."""
    groups: dict[tuple[str, str], Group] = {}
    for row in evidence.rows:
        key = (row.axis, row.group)
        groups.setdefault(key, Group(row.axis, row.group, row.group_label, [], {}, {})).rows.append(row)
    for result in evidence.results:
        groups[result.axis, result.group].results[result.technique, result.metric] = result
    for line in evidence.ranking:
        groups[line.axis, line.group].standings[line.technique, line.metric] = line
    return list(groups.values())


def results_by_cell(evidence: Evidence) -> dict[tuple[registry.Axis, str, str], Result]:
    """Lists each metric of each cell once, also where several rows share the cell: by axis, cell and metric."""
    return {
        (group.axis, result.cell, result.metric): result
        for group in groups_of(evidence)
        for result in group.results.values()
    }


def cell_labels(rows: Iterable[registry.Row], axis: registry.Axis, cell: str) -> str:
    """Names all rows that a cell serves as `row_labels` does, with the size where the axis has groups per size."""
    rows = list(rows)
    name, size = row_labels(rows, axis, cell), _size(rows, axis, cell)
    return f"{name} ({size})" if size else name


def cells_listing(rows: Iterable[registry.Row], axis: registry.Axis, cells: Iterable[str]) -> str:
    """Names several cells in a phrase, those that are there at the same sizes together: "LoRA and DoRA (small model)"."""
    rows, sizes = list(rows), dict[str, list[str]]()
    for cell in cells:
        sizes.setdefault(row_labels(rows, axis, cell), []).append(_size(rows, axis, cell))
    names: dict[str, list[str]] = {}
    for name, found in sizes.items():
        names.setdefault(listing(size for size in found if size), []).append(name)
    return "; ".join(f"{listing(alike)} ({where})" if where else listing(alike) for where, alike in names.items())


def row_labels(rows: Iterable[registry.Row], axis: registry.Axis, cell: str) -> str:
    """Names all rows that a cell serves, such as "GQA / RoPE / Transformer"."""
    return " / ".join(dict.fromkeys(row.label for row in rows if (row.axis, row.cell) == (axis, cell)))


def _size(rows: Iterable[registry.Row], axis: registry.Axis, cell: str) -> str:
    """The size of a cell in words, empty where the axis has no groups per size."""
    if axis == "pretrain":
        return ""
    return next(row.group_label.lower() for row in rows if (row.axis, row.cell) == (axis, cell))


def axes_of(rows: Iterable[registry.Row]) -> list[registry.Axis]:
    """Lists the axes that have rows, in the table's order."""
    present = {row.axis for row in rows}
    return [axis for axis in registry.AXES if axis in present]
