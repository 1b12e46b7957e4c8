"""The tidy tables of a run: one line per row and metric, then the ranks, then a summary for `dvc metrics show`."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from efficientllm import metrics, paths, registry
from efficientllm.errors import ArtifactError
from efficientllm.files import UNREADABLE_REMEDY, csv_text
from efficientllm.ranking.normalize import normalize
from efficientllm.ranking.rank import Estimate, ranks, ties
from efficientllm.ranking.tiers import Tier, tiers
from efficientllm.records import Record, read_record

RESULTS_FILE = "results.csv"
RANKING_FILE = "ranking.csv"
SUMMARY_FILE = "metrics.json"
AVERAGE_RANK = "average_rank"
"""Key of the overall column: the mean of a row's ranks."""

SEEDS = "seeds"
"""In a record's information: of how many seeds a metric is the median, by the metric's key."""

_REFERENCE_SIZE = "medium"


@dataclass(frozen=True)
class Result:
    """One metric of one row: a line of results.csv. A missing metric has a reason in place of a value.

    `seeds` is the number of training runs that a value is the median of; None where it is one.
    """

    axis: str
    group: str
    technique: str
    label: str
    cell: str
    size: str
    metric: str
    value: float | None
    unit: str
    direction: metrics.Direction
    source: str | None = None
    method: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    coefficient_of_variation: float | None = None
    noisy: bool | None = None
    window_s: float | None = None
    seeds: int | None = None
    missing_reason: str | None = None


@dataclass(frozen=True)
class Ranked:
    """The standing of one row in one metric: a line of ranking.csv.

    `tied_with` names the techniques of the group whose 95 % interval overlaps this row's; `tied` says that there is one.
    `stability` is the share of draws from the intervals in which the rank holds; None where there is no interval.
    """

    axis: str
    group: str
    technique: str
    metric: str
    value: float | None
    normalized: float | None
    rank: int | None
    tied: bool
    tier: Tier | None
    tied_with: tuple[str, ...] = ()
    stability: float | None = None


def read_records(rows: Iterable[registry.Row], root: Path = Path()) -> dict[tuple[registry.Axis, str], Record]:
    """Reads the records of the declared cells.

    Args:
        rows: Rows of the ranking; several may share a cell.
        root: The repository's root.

    Returns:
        Records by axis and cell, in the rows' order.

    Raises:
        ArtifactError: A record is missing, breaks the contract, or describes another cell than its file's name says.
    """
    found: dict[tuple[registry.Axis, str], Record] = {}
    for row in rows:
        if (row.axis, row.cell) in found:
            continue
        path = root / paths.record(row.axis, row.cell)
        record = read_record(path)
        if (record.axis, record.cell) != (row.axis, row.cell):
            raise ArtifactError(f"{path} describes {record.axis}@{record.cell}: {UNREADABLE_REMEDY}")
        found[row.axis, row.cell] = record
    return found


def tabulate(rows: Iterable[registry.Row], records: dict[tuple[registry.Axis, str], Record]) -> list[Result]:
    """Lists every metric of every row, in the order of the rows and of the metric registry.

    Args:
        rows: Rows of the ranking.
        records: The record of each row's axis and cell.

    Returns:
        One result per row and metric. A failed cell has a result for each metric of its axis, with the failure as reason.
    """
    return [
        _result(row, records[row.axis, row.cell], entry)
        for row in rows
        for entry in metrics.METRICS
        if row.axis in entry.measured_on
        or (records[row.axis, row.cell].status == "failed" and row.axis in entry.derived_on)
        or entry.key in records[row.axis, row.cell].metrics
        or entry.key in records[row.axis, row.cell].missing
    ]


def _result(row: registry.Row, record: Record, entry: metrics.Metric) -> Result:
    place = (row.axis, row.group, row.technique, row.label, row.cell, record.size, entry.key)
    if record.status == "failed":
        return Result(*place, None, entry.unit, entry.direction, missing_reason=f"failed: {record.reason}")
    if entry.key in record.missing:
        return Result(*place, None, entry.unit, entry.direction, missing_reason=record.missing[entry.key])
    taken = record.metrics[entry.key]
    return Result(
        *place, taken.value, taken.unit, taken.direction, taken.source, taken.method, taken.ci_low, taken.ci_high,
        taken.n, taken.coefficient_of_variation, taken.noisy, taken.window_s,
        seeds=record.information.get(SEEDS, {}).get(entry.key),
    )  # fmt: skip


def rank(results: Sequence[Result]) -> list[Ranked]:
    """Ranks every group by every metric that is ranked on its axis, and by the average of these ranks.

    Where some values of a column are measured and others modelled, only the measured ones are ranked: a model's error
    is no difference between techniques. The average rank is the mean over the metrics in which every row with any rank
    has one, so that all averages of a group are means of the same columns, with equal weights.

    Args:
        results: Output of `tabulate`.

    Returns:
        One line per row and ranked metric, then one per row for the average rank; group by group in the given order.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.axis, result.group), []).append(result)
    ranked: list[Ranked] = []
    for (axis, _), members in groups.items():
        columns = [
            rank_column([member for member in members if member.metric == entry.key], entry.direction)
            for entry in metrics.ranked_metrics(axis)
        ]
        for column in columns:
            ranked += column
        ranked += _average(columns)
    return ranked


def rank_column(column: Sequence[Result], direction: metrics.Direction) -> list[Ranked]:
    """Ranks the rows of one group by one metric; where some values are measured, modelled ones have no rank.

    Args:
        column: One result per row.
        direction: Which direction is better.
    """
    from efficientllm.ranking.stability import rank_stability

    sources = {member.source for member in column if member.value is not None}
    rankable = sources - {"modelled"} or sources
    estimates = [
        None
        if member.value is None or member.source not in rankable
        else Estimate(member.value, member.ci_low, member.ci_high, member.n)
        for member in column
    ]
    return _lines(column, estimates, direction, rank_stability(estimates, direction))


def _average(columns: list[list[Ranked]]) -> list[Ranked]:
    by_row = list(zip(*columns, strict=True))
    present = [lines for lines in by_row if any(line.rank is not None for line in lines)]
    shared = [
        position for position in range(len(columns)) if all(lines[position].rank is not None for lines in present)
    ]
    means: list[float | None] = [
        fmean(line.rank for position in shared if (line := lines[position]).rank is not None)
        if lines in present and shared
        else None
        for lines in by_row
    ]
    estimates = [None if mean is None else Estimate(mean) for mean in means]
    return _lines([lines[0] for lines in by_row], estimates, "lower", metric=AVERAGE_RANK)


def _lines(
    members: Sequence[Result | Ranked],
    estimates: Sequence[Estimate | None],
    direction: metrics.Direction,
    stability: Sequence[float | None] | None = None,
    metric: str | None = None,
) -> list[Ranked]:
    values = [None if estimate is None else estimate.value for estimate in estimates]
    standings = ranks(values, direction)
    columns = (members, values, normalize(values, direction), standings, ties(estimates), tiers(standings))
    return [
        Ranked(
            member.axis, member.group, member.technique, metric or member.metric, value, scaled, standing,
            bool(tied), tier, tuple(members[position].technique for position in tied), share,
        )
        for member, value, scaled, standing, tied, tier, share in zip(
            *columns, stability or [None] * len(members), strict=True
        )
    ]  # fmt: skip


def reference_size(results: Iterable[Result], axis: registry.Axis) -> str | None:
    """Returns the size at which an axis' techniques are compared with each other: medium, or the middle one present.

    Args:
        results: Output of `tabulate`.
        axis: The axis.

    Returns:
        A size, or None where the axis has no rows.
    """
    present = {result.size for result in results if result.axis == axis}
    ordered = [size for size in registry.SIZES if size in present] + sorted(present - set(registry.SIZES))
    if _REFERENCE_SIZE in present:
        return _REFERENCE_SIZE
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def summarize(results: Sequence[Result]) -> dict[str, Any]:
    """Picks the few numbers that `dvc metrics show` and `dvc exp show` put side by side.

    Args:
        results: Output of `tabulate`.

    Returns:
        Per axis, at its reference size: the performance metric of every technique, for quantization its perplexity and
        energy per token too, and the lowest energy per token. A missing number is null, so that the keys are stable.
    """
    summary: dict[str, Any] = {}
    for axis in registry.AXES:
        size = reference_size(results, axis)
        chosen = [result for result in results if result.axis == axis and result.size == size]
        if not chosen:
            continue
        keys = [metrics.PERFORMANCE[axis]] + (["perplexity", "energy_per_token"] if axis == "quantize" else [])
        # rows that share a cell are one number: pretraining is keyed by cell, the others by technique
        figures: dict[str, Any] = {
            key: {
                (result.cell if axis == "pretrain" else result.technique): result.value
                for result in chosen
                if result.metric == key
            }
            for key in dict.fromkeys(keys)
        }
        if axis != "quantize":
            energies = [result.value for result in chosen if result.metric == "energy_per_token"]
            figures["lowest_energy_per_token"] = min((value for value in energies if value is not None), default=None)
        summary[axis] = figures
    return summary


def to_csv(table: Sequence[Result] | Sequence[Ranked], kind: type[Result] | type[Ranked]) -> str:
    """Renders lines as CSV; see `files.csv_text`.

    Args:
        table: Lines of one kind.
        kind: That kind; names the columns, also where there are no lines.
    """
    return csv_text([field.name for field in fields(kind)], map(astuple, table))
