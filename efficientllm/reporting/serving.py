"""Serving curves: decoding by batch size and by context length, a figure per group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.figures import Line, lines, lines_axes, swatch
from efficientllm.reporting.groups import Group, groups_of
from efficientllm.reporting.text import Scale, column_scale, identifier, listing, number

_SWEEPS = (("batches", "batch", "batch size (sequences)"), ("contexts", "context", "context (tokens)"))
# what each sweep shows: key of a point, unit of the registry of prefixes, heading
_PANELS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "batches": (
        ("tokens_per_second", "token/s", "Throughput by batch"),
        ("inter_token_latency_s", "s", "Time between tokens by batch"),
        ("joules_per_token", "J/token", "Energy per token by batch"),
    ),
    "contexts": (
        ("inter_token_latency_s", "s", "Time between tokens by context"),
        ("joules_per_token", "J/token", "Energy per token by context"),
        ("cache_bytes", "GiB", "Cache by context"),
    ),
}
_COLUMNS = (
    ("tokens_per_second", "token/s"), ("inter_token_latency_s", "s"), ("joules_per_token", "J/token"), ("cache_bytes", "GiB"),
    ("bandwidth_share", ""),
)  # fmt: skip


@dataclass(frozen=True)
class ServingRow:
    """One point of one technique: its values, or why there are none."""

    label: str
    sweep: str
    batch: int
    context: int
    values: list[str | None]
    reason: str | None


@dataclass(frozen=True)
class ServingPanel:
    """A drawing, or None where its lines would all be one; `coinciding` names the rows that share a line."""

    heading: str
    svg: Markup | None
    coinciding: str


@dataclass(frozen=True)
class ServingFigure:
    """A group's curves, and the points behind them."""

    id: str
    group: Group
    panels: list[ServingPanel]
    alike: str
    legend: list[tuple[Markup, str]]
    units: list[str]
    rows: list[ServingRow]
    energy: str


def serving_figures(evidence: Evidence) -> Iterator[ServingFigure]:
    """Draws decoding speed, energy and cache over batch and context.

    All architectures and precisions are shown; tuned models have no curves, since a method leaves the served model's shape
    as it was.
    """
    for group in groups_of(evidence):
        records = [evidence.records[row.axis, row.cell] for row in group.rows]
        curves = [record.information.get("serving_curves") or {} for record in records]
        if not any(found.get(sweep) for found in curves for sweep, _, _ in _SWEEPS):
            continue
        found = [_panel(group, curves, sweep, *shown) for sweep in _PANELS for shown in _PANELS[sweep]]
        panels = [panel for panel in found if panel is not None]
        points = [
            (row.label, sweep, point)
            for row, found in zip(group.rows, curves, strict=True)
            for sweep, _, _ in _SWEEPS
            for point in found.get(sweep, [])
        ]
        scales = [_scale([point for _, _, point in points], key, unit) for key, unit in _COLUMNS]
        sources = {found["energy_source"] for found in curves if found.get("energy_source")}
        yield ServingFigure(
            group.id("serving"), group, [panel for panel in panels if panel.svg is not None],
            listing(panel.heading for panel in panels if panel.svg is None),
            [(swatch(series), row.label) for series, row in enumerate(group.rows) if curves[series]],
            [scale.unit for scale in scales], [_row(label, sweep, point, scales) for label, sweep, point in points],
            "modelled" if "modelled" in sources else "measured" if sources else "missing",
        )  # fmt: skip


def _panel(
    group: Group, curves: Sequence[dict[str, Any]], sweep: str, key: str, unit: str, heading: str
) -> ServingPanel | None:
    _, position, x_label = next(entry for entry in _SWEEPS if entry[0] == sweep)
    found = {
        series: [
            (point[position], value) for point in curve.get(sweep, []) if (value := _value(point, key)) is not None
        ]
        for series, curve in enumerate(curves)
    }
    scale = column_scale((value for pairs in found.values() for _, value in pairs), unit)
    drawn = [
        Line(series, [at for at, _ in sorted(pairs)], [value * scale.factor for _, value in sorted(pairs)])
        for series, pairs in found.items()
        if pairs
    ]
    if not drawn:
        return None
    shared = _coinciding(drawn)
    if len(drawn) > 1 and shared == [list(range(len(drawn)))]:
        return ServingPanel(heading, None, "")
    coinciding = "; ".join(listing(group.rows[drawn[at].series].label for at in one) for one in shared)
    ticks = sorted({at for line in drawn for at in line.xs})
    svg = lines(
        identifier(group.id("serving"), sweep, key), f"{group.title}: {heading.lower()}",
        "A line per technique; the table below the figure holds the same numbers.", heading,
        *lines_axes(x_label, scale.unit, drawn, log=True, ticks=ticks), drawn,
    )  # fmt: skip
    return ServingPanel(heading, svg, coinciding)


def _coinciding(drawn: Sequence[Line]) -> list[list[int]]:
    """Lists the lines that lie on one another, since the table below gives them the same numbers."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for at, line in enumerate(drawn):
        places.setdefault((*line.xs, *map(number, line.ys)), []).append(at)
    return [one for one in places.values() if len(one) > 1]


def _scale(points: Sequence[dict[str, Any]], key: str, unit: str) -> Scale:
    return column_scale((_value(point, key) for point in points), unit)


def _value(point: dict[str, Any], key: str) -> float | None:
    value = point.get(key)
    return value / 2**30 if key == "cache_bytes" and value is not None else value


def _row(label: str, sweep: str, point: dict[str, Any], scales: Sequence[Scale]) -> ServingRow:
    values = [
        None if (value := _value(point, key)) is None else number(value * scale.factor)
        for (key, _), scale in zip(_COLUMNS, scales, strict=True)
    ]
    return ServingRow(
        label,
        "batch" if sweep == "batches" else "context",
        point["batch"],
        point["context"],
        values,
        point.get("reason"),
    )
