"""This run compared with other result sets: value, ratio, and whether the difference is beyond the intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from efficientllm import metrics, registry
from efficientllm.ranking.compare import Compared, Comparison, ResultSet, compare_sets
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.text import Scale, column_scale, number, scaled_estimate

THIS_RUN = "this run"
"""What the report's own run is called in a comparison."""


@dataclass(frozen=True)
class SetValue:
    """A set's value of a row and metric: text, interval, and how it differs from this run's."""

    value: str | None
    interval: str | None
    change: str
    modelled: bool
    reason: str | None


@dataclass(frozen=True)
class ComparedRow:
    """A row in all sets: for each set its values, metric by metric; None where no set has the metric."""

    label: str
    sets: list[list[SetValue | None]]


@dataclass(frozen=True)
class ComparedAxis:
    """An axis in all sets."""

    label: str
    heads: list[tuple[str, str]]
    groups: list[tuple[str, list[ComparedRow]]]


@dataclass(frozen=True)
class SetComparison:
    """All sets: their names, what the others come to in one sentence each, and the tables."""

    names: list[str]
    findings: list[str]
    axes: list[ComparedAxis]


def compare(evidence: Evidence, sets: Sequence[ResultSet]) -> SetComparison | None:
    """Compares the ranked metrics of this run with those of other result sets.

    Args:
        evidence: The run's evidence, for the names of its rows.
        sets: This run's set, then the others; with fewer than two there is nothing to compare.

    Raises:
        DataError: Two sets give a metric in different units or directions.
    """
    if len(sets) < 2:
        return None
    wanted: dict[str, list[str]] = {
        axis: [entry.key for entry in metrics.ranked_metrics(axis)] for axis in registry.AXES
    }
    found = [one for one in compare_sets(sets) if one.metric in wanted.get(one.axis, [])]
    labels: dict[tuple[str, ...], str] = {(row.axis, row.group, row.technique): row.label for row in evidence.rows}
    names: dict[tuple[str, ...], str] = {(row.axis, row.group): row.group_label for row in evidence.rows}
    axes = []
    for axis in registry.AXES:
        keys, own = wanted[axis], [one for one in found if one.axis == axis]
        if not own:
            continue
        scales = {
            key: column_scale((value.value for one in own if one.metric == key for value in one.values), metrics.metric(key).unit)
            for key in keys
        }  # fmt: skip
        by_place = {(one.group, one.technique, one.metric): one for one in own}
        groups: dict[str, list[ComparedRow]] = {}
        for group, technique in dict.fromkeys((one.group, one.technique) for one in own):
            columns = [(by_place.get((group, technique, key)), scales[key]) for key in keys]
            groups.setdefault(names.get((axis, group), group), []).append(
                ComparedRow(
                    labels.get((axis, group, technique), technique),
                    [[_value(one, at, scale) for one, scale in columns] for at in range(len(sets))],
                )
            )
        heads = [(metrics.metric(key).symbol, scales[key].unit) for key in keys]
        axes.append(ComparedAxis(registry.AXIS_LABELS[axis], heads, list(groups.items())))
    return SetComparison(
        [one.name for one in sets], [_finding(one.name, at, found) for at, one in enumerate(sets) if at], axes
    )


def _value(one: Comparison | None, at: int, scale: Scale) -> SetValue | None:
    if one is None:
        return None
    own = one.values[at]
    if own.value is None:
        return SetValue(None, None, "", False, own.reason)
    value, interval = scaled_estimate(own, scale)
    return SetValue(value, interval, _change(own) if at else "", own.source == "modelled", None)


def _change(own: Compared) -> str:
    if own.difference is None:
        return ""
    if own.beyond is False:
        return "within the intervals"
    if own.better is None:
        return "equal"
    size = "" if own.ratio is None else f"\N{MULTIPLICATION SIGN}{number(own.ratio)}, "
    return f"{size}{'better' if own.better else 'worse'}{', no interval' if own.beyond is None else ''}"


def _finding(name: str, at: int, found: Sequence[Comparison]) -> str:
    values = [own for one in found if (own := one.values[at]).difference is not None]
    better = sum(own.beyond is True and own.better is True for own in values)
    worse = sum(own.beyond is True and own.better is False for own in values)
    within = sum(own.beyond is False for own in values)
    unknown = len(values) - better - worse - within
    return (
        f"{name}: of {len(values)} ranked figures that both have, {better} are better than {THIS_RUN}\N{RIGHT SINGLE QUOTATION MARK}s "
        f"beyond the intervals, {worse} worse, {within} within them, and {unknown} have no interval."
    )
