"""The ranking table and the values behind it, as the templates need them."""

from dataclasses import dataclass, field

from efficientllm import metrics, registry
from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.results import AVERAGE_RANK, Ranked, Result
from efficientllm.ranking.score import weighted_scores
from efficientllm.ranking.stability import highest_score_shares
from efficientllm.ranking.tiers import is_tied_across
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.flags import doubts, noise
from efficientllm.reporting.gaps import Gap, Gaps
from efficientllm.reporting.groups import Group, axes_of, groups_of
from efficientllm.reporting.text import Scale, column_scale, identifier, listing, percent, scaled_estimate


@dataclass(frozen=True)
class Column:
    """A metric as a column; `unit` is that of the stored values, `shown_unit` that of the shown ones.

    `shown_unit` stands in words where the metric is a pure number. `modelled` says whether all of its values are.
    """

    key: str
    symbol: str
    label: str
    description: str
    direction: str
    unit: str
    shown_unit: str
    scale: Scale
    modelled: bool
    performance: bool


@dataclass(frozen=True)
class Cell:
    """A row's standing and value in one column.

    `tied_across` says that the row is tied with one of the opposite tier, so that its own is not established. `raw`, the
    ends of the interval `low` and `high`, and `normalized` are what a reader's weights, limits and CSV file work on.
    """

    gap: Gap | None
    value: str | None = None
    interval: str | None = None
    modelled: bool = False
    noisy: str | None = None
    doubtful: str = ""
    seeds: str | None = None
    rank: int | None = None
    tier: str | None = None
    tied_with: str = ""
    tied_across: bool = False
    stability: str | None = None
    raw: str | None = None
    low: str | None = None
    high: str | None = None
    normalized: str | None = None


@dataclass(frozen=True)
class TableRow:
    """One technique; `score` is its weighted score with equal weights."""

    id: str
    label: str
    failed: str | None
    cells: list[Cell]
    average: Cell | None
    score: str | None


@dataclass(frozen=True)
class GroupTable:
    """Rows that are ranked against each other.

    `best` names those with the highest score, `sure` says in how many draws; `lone` where only one row has a score, so
    that nothing was compared.
    """

    id: str
    key: str
    label: str
    rows: list[TableRow]
    best: str
    sure: str | None
    lone: bool


@dataclass(frozen=True)
class AxisTable:
    """One section of a table."""

    axis: registry.Axis
    label: str
    columns: list[Column]
    groups: list[GroupTable] = field(default_factory=list)


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


def _axis_table(
    evidence: Evidence, gaps: Gaps, axis: registry.Axis, chosen: list[metrics.Metric], prefix: str
) -> AxisTable:
    columns = [_column(axis, entry, [result for result in evidence.results if result.axis == axis]) for entry in chosen]
    groups = [group for group in groups_of(evidence) if group.axis == axis]
    return AxisTable(
        axis,
        registry.AXIS_LABELS[axis],
        columns,
        [_group_table(evidence, gaps, group, columns, prefix) for group in groups],
    )


def _group_table(evidence: Evidence, gaps: Gaps, group: Group, columns: list[Column], prefix: str) -> GroupTable:
    scores = equal_weight_scores(group)
    rows = []
    for row in group.rows:
        cells = [
            _cell(group.results[row.technique, column.key], group.standings.get((row.technique, column.key)), column, gaps, group)
            for column in columns
        ]  # fmt: skip
        score = scores[row.technique]
        rows.append(
            TableRow(
                identifier(prefix, row.axis, row.group, row.technique), row.label,
                evidence.records[row.axis, row.cell].reason, cells,
                _average(group.standings[row.technique, AVERAGE_RANK], group), None if score is None else f"{score:.2f}",
            )
        )  # fmt: skip
    highest = max((score for score in scores.values() if score is not None), default=None)
    best = [row for row in group.rows if highest is not None and scores[row.technique] == highest]
    shares = _highest_score_shares(group)
    known = [share for row in best if (share := shares[row.technique]) is not None]
    return GroupTable(
        identifier(prefix, "group", group.axis, group.key), group.key, group.label, rows,
        listing(row.label for row in best), percent(min(1.0, sum(known))) if known else None,
        sum(score is not None for score in scores.values()) == 1,
    )  # fmt: skip


def equal_weight_scores(group: Group) -> dict[str, float | None]:
    """Scores the rows of a group with the same weight for every ranked metric."""
    keys = [entry.key for entry in metrics.ranked_metrics(group.axis)]
    normalized = {
        key: {row.technique: group.standings[row.technique, key].normalized for row in group.rows} for key in keys
    }
    return weighted_scores(normalized, dict.fromkeys(keys, 1.0))


def _highest_score_shares(group: Group) -> dict[str, float | None]:
    """In which share of draws each row has the highest score with equal weights."""
    entries = metrics.ranked_metrics(group.axis)
    columns = {
        entry.key: ([_estimate(group, row.technique, entry.key) for row in group.rows], entry.direction)
        for entry in entries
    }
    weights = dict.fromkeys(columns, 1.0)
    shares = highest_score_shares(columns, weights, alone=[metrics.PERFORMANCE[group.axis]])
    return {row.technique: share for row, share in zip(group.rows, shares, strict=True)}


def _estimate(group: Group, technique: str, key: str) -> Estimate | None:
    result = group.results[technique, key]
    if result.value is None or group.standings[technique, key].normalized is None:
        return None
    return Estimate(result.value, result.ci_low, result.ci_high, result.n)


def _column(axis: registry.Axis, entry: metrics.Metric, results: list[Result]) -> Column:
    own = [result for result in results if result.metric == entry.key and result.value is not None]
    scale = column_scale((result.value for result in own), entry.shown_unit)
    return Column(
        entry.key, entry.symbol, entry.label, entry.description, entry.direction, entry.unit,
        scale.unit or ("difference" if entry.is_difference else "per token"), scale,
        bool(own) and all(result.source == "modelled" for result in own), entry.key == metrics.PERFORMANCE[axis],
    )  # fmt: skip


def _cell(result: Result, standing: Ranked | None, column: Column, gaps: Gaps, group: Group) -> Cell:
    if result.value is None:
        return Cell(gaps.of(result))
    value, interval = scaled_estimate(result, column.scale)
    scaled = standing.normalized if standing else None
    return Cell(
        gap=None,
        value=value,
        interval=interval,
        modelled=result.source == "modelled",
        noisy=noise(result),
        doubtful="; ".join(doubts(result)),
        seeds=_seeds(result, group),
        rank=standing.rank if standing else None,
        tier=standing.tier if standing else None,
        tied_with=tied_with(standing, group) if standing else "",
        tied_across=_tied_across(standing, group) if standing else False,
        stability=percent(standing.stability) if standing else None,
        raw=f"{result.value:.7g}",
        low=None if result.ci_low is None else f"{result.ci_low:.7g}",
        high=None if result.ci_high is None else f"{result.ci_high:.7g}",
        normalized=None if scaled is None else f"{scaled:.4f}",
    )


def _seeds(result: Result, group: Group) -> str | None:
    """Says how many training runs a figure comes from, where any row of the group has several."""
    if result.seeds is not None:
        return f"{result.seeds} seeds"
    return "1 seed" if any(other.seeds is not None for other in group.column(result.metric)) else None


def _average(standing: Ranked, group: Group) -> Cell | None:
    if standing.value is None:
        return None
    return Cell(
        None, f"{standing.value:.2f}", rank=standing.rank, tier=standing.tier, tied_with=tied_with(standing, group),
        tied_across=_tied_across(standing, group), raw=f"{standing.value:.4f}",
    )  # fmt: skip


def tied_with(standing: Ranked, group: Group) -> str:
    """Names the rows whose intervals overlap that of a rank's row."""
    return listing(group.name(technique) for technique in standing.tied_with)


def _tied_across(standing: Ranked, group: Group) -> bool:
    """Whether a row of the highest tier is tied with one of the lowest, or the other way round."""
    others = (group.standings[technique, standing.metric].tier for technique in standing.tied_with)
    return is_tied_across(standing.tier, others)
