"""The ranking table, the values behind it, and the gaps in both, as the templates need them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from efficientllm import metrics, registry
from efficientllm.ranking.results import AVERAGE_RANK, Ranked, Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.text import Scale, column_scale, estimate, identifier, listing, number


@dataclass(frozen=True)
class Gap:
    """The same metrics, missing for the same reason in one or more cells of an axis."""

    id: str
    axis: str
    labels: str
    metrics: list[str]
    whole_cell: bool
    reason: str


class Gaps:
    """Collects the missing metrics of each cell and reason, and puts cells with equal gaps together."""

    def __init__(self, evidence: Evidence) -> None:
        missing: dict[tuple[str, str, str], list[str]] = {}
        for result in evidence.results:
            if result.missing_reason is not None:
                keys = missing.setdefault((result.axis, result.cell, result.missing_reason), [])
                keys += [result.metric] if result.metric not in keys else []
        alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for (axis, cell, reason), keys in missing.items():
            alike.setdefault((axis, reason, tuple(keys)), []).append(cell)
        self._listed: list[Gap] = []
        self._by_cell: dict[tuple[str, str, str], Gap] = {}
        for (axis, reason, absent), cells in alike.items():
            gap = Gap(
                id=f"gap-{len(self._listed) + 1}",
                axis=registry.AXIS_LABELS[axis],
                labels=listing(cell_labels(evidence.rows, axis, cell) for cell in cells),
                metrics=[metrics.metric(key).label for key in absent],
                whole_cell=all(evidence.records[axis, cell].status == "failed" for cell in cells),
                reason=reason,
            )
            self._listed.append(gap)
            self._by_cell |= {(axis, cell, reason): gap for cell in cells}

    def of(self, result: Result) -> Gap | None:
        """Returns the gap that a result is part of, or None where it has a value."""
        reason = result.missing_reason
        return None if reason is None else self._by_cell[result.axis, result.cell, reason]

    def all(self) -> list[Gap]:
        """Lists the gaps in the order of the table."""
        return list(self._listed)


@dataclass(frozen=True)
class Column:
    """A metric as a column: its unit and prefix, and whether all of its values are modelled."""

    key: str
    id: str
    symbol: str
    label: str
    description: str
    direction: str
    scale: Scale
    modelled: bool
    performance: bool


@dataclass(frozen=True)
class Cell:
    """A row's standing and value in one column."""

    gap: Gap | None
    value: str | None = None
    interval: str | None = None
    modelled: bool = False
    noisy: str | None = None
    detail: str = ""
    rank: int | None = None
    tier: str | None = None
    tied_with: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class TableRow:
    """One technique."""

    id: str
    label: str
    technique: str
    stage: str
    failed: str | None
    cells: list[Cell]
    average: Cell


@dataclass(frozen=True)
class GroupTable:
    """Rows that are ranked against each other."""

    id: str
    key: str
    label: str
    rows: list[TableRow]


@dataclass(frozen=True)
class AxisTable:
    """One section of a table."""

    axis: str
    label: str
    columns: list[Column]
    groups: list[GroupTable] = field(default_factory=list)


def cell_labels(rows: Iterable[registry.Row], axis: str, cell: str) -> str:
    """Names all rows that a cell serves, such as "GQA / RoPE / Transformer", with the size where it has groups per size."""
    serving = [row for row in rows if (row.axis, row.cell) == (axis, cell)]
    suffix = f" ({serving[0].group_label.lower()})" if axis != "pretrain" else ""
    return " / ".join(dict.fromkeys(row.label for row in serving)) + suffix


def axes_of(rows: Iterable[registry.Row]) -> list[str]:
    """Lists the axes that have rows, in the table's order."""
    present = {row.axis for row in rows}
    return [axis for axis in registry.AXES if axis in present]


def ranking_tables(evidence: Evidence, gaps: Gaps) -> list[AxisTable]:
    """Builds the ranking table: per axis its groups, per row a rank and a value in every ranked metric."""
    return [_axis_table(evidence, gaps, axis, metrics.ranked_metrics(axis), "row") for axis in axes_of(evidence.rows)]


def value_tables(evidence: Evidence, gaps: Gaps) -> list[AxisTable]:
    """Builds the tables of all measured values: the ranked metrics, then those that are only shown."""
    tables = []
    for axis in axes_of(evidence.rows):
        ranked = metrics.ranked_metrics(axis)
        present = {result.metric for result in evidence.results if result.axis == axis}
        further = [entry for entry in metrics.METRICS if entry.key in present and entry not in ranked]
        tables.append(_axis_table(evidence, gaps, axis, ranked + further, "values"))
    return tables


def _axis_table(evidence: Evidence, gaps: Gaps, axis: str, chosen: list[metrics.Metric], prefix: str) -> AxisTable:
    results = {
        (result.group, result.technique, result.metric): result for result in evidence.results if result.axis == axis
    }
    standings = {(line.group, line.technique, line.metric): line for line in evidence.ranking if line.axis == axis}
    labels = {(row.group, row.technique): row.label for row in evidence.rows if row.axis == axis}
    columns = [_column(axis, entry, list(results.values()), prefix) for entry in chosen]
    groups: dict[str, GroupTable] = {}
    for row in evidence.rows:
        if row.axis != axis:
            continue
        group = groups.setdefault(
            row.group, GroupTable(identifier(prefix, "group", axis, row.group), row.group, row.group_label, [])
        )
        cells = [
            _cell(
                results[row.group, row.technique, column.key],
                standings.get((row.group, row.technique, column.key)), column, gaps, labels,
            )
            for column in columns
        ]  # fmt: skip
        record = evidence.records[axis, row.cell]
        group.rows.append(
            TableRow(
                identifier(prefix, axis, row.group, row.technique), row.label, row.technique, f"{axis}@{row.cell}",
                record.reason, cells, _average(standings[row.group, row.technique, AVERAGE_RANK], labels),
            )
        )  # fmt: skip
    return AxisTable(axis, registry.AXIS_LABELS[axis], columns, list(groups.values()))


def _column(axis: str, entry: metrics.Metric, results: list[Result], prefix: str) -> Column:
    own = [result for result in results if result.metric == entry.key and result.value is not None]
    return Column(
        entry.key, identifier(prefix, "column", axis, entry.key), entry.symbol, entry.label, entry.description,
        entry.direction, column_scale((result.value for result in own), entry.unit),
        bool(own) and all(result.source == "modelled" for result in own), entry.key == metrics.PERFORMANCE[axis],
    )  # fmt: skip


def _cell(
    result: Result, standing: Ranked | None, column: Column, gaps: Gaps, labels: dict[tuple[str, str], str]
) -> Cell:
    if result.value is None:
        return Cell(gaps.of(result))
    value, interval = scaled_estimate(result, column.scale)
    variation = result.coefficient_of_variation
    return Cell(
        gap=None,
        value=value,
        interval=interval,
        modelled=result.source == "modelled",
        noisy=(f"coefficient of variation {number(100 * variation, 2)} %" if variation is not None else "noisy")
        if result.noisy
        else None,
        detail=f"{result.method}; {result.n} repeat{'s' if result.n != 1 else ''}",
        rank=standing.rank if standing else None,
        tier=standing.tier if standing else None,
        tied_with=_tied_with(standing, labels) if standing else "",
        sort=result.value,
    )


def _average(standing: Ranked, labels: dict[tuple[str, str], str]) -> Cell:
    if standing.value is None:
        return Cell(None)
    return Cell(
        None, f"{standing.value:.2f}", rank=standing.rank, tier=standing.tier,
        tied_with=_tied_with(standing, labels), sort=standing.value,
    )  # fmt: skip


def _tied_with(standing: Ranked, labels: dict[tuple[str, str], str]) -> str:
    return listing(labels[standing.group, technique] for technique in standing.tied_with)


def scaled_estimate(result: Result, scale: Scale) -> tuple[str, str | None]:
    """Renders a result's value and interval in a column's unit.

    Raises:
        ValueError: The result has no value.
    """
    if result.value is None:
        raise ValueError(f"{result.metric} of {result.cell} has no value")
    low = None if result.ci_low is None else result.ci_low * scale.factor
    high = None if result.ci_high is None else result.ci_high * scale.factor
    return estimate(result.value * scale.factor, low, high)
