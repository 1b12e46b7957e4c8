"""Puts the evidence into the templates: one HTML page without any outside request."""

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from efficientllm import __version__, metrics, registry
from efficientllm.ranking.normalize import FLOOR
from efficientllm.ranking.results import AVERAGE_RANK
from efficientllm.ranking.tiers import tier_bounds
from efficientllm.reporting import appendix, summary, tables
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.machine import machine_facts
from efficientllm.reporting.text import DASH, identifier, number
from efficientllm.telemetry import Curve


def render(evidence: Evidence) -> str:
    """Renders the report; the same evidence yields the same bytes.

    Args:
        evidence: The run's records, curves and descriptions.

    Returns:
        A complete HTML document.
    """
    environment = Environment(
        loader=PackageLoader("efficientllm.reporting"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"identifier": identifier, "number": number}
    style, script = _asset("style.css"), _asset("report.js")
    gaps = tables.Gaps(evidence)
    cards = summary.answers(evidence)
    context = {
        "version": __version__,
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "finding": summary.finding(cards),
        "cards": cards,
        "machine": machine_facts(evidence),
        "counts": summary.counts(evidence),
        "gaps": gaps.all(),
        "ranking": tables.ranking_tables(evidence, gaps),
        "values": tables.value_tables(evidence, gaps),
        "figures": list(normalized_figures(evidence)),
        "curves": list(curve_figures(evidence)),
        "without_curve": [
            (tables.cell_labels(evidence.rows, axis, cell), reason)
            for (axis, cell), reason in evidence.without_curve.items()
        ],
        "quality": appendix.quality_tables(evidence),
        "methods": appendix.metric_methods(evidence),
        "reproductions": appendix.reproductions(evidence),
        "provenance": appendix.provenance(evidence),
        "downloads": appendix.downloads(evidence),
        "floor": FLOOR,
        "tier_rules": tier_rules(evidence),
    }
    return environment.get_template("report.html.j2").render(context)


def _asset(name: str) -> str:
    return resources.files("efficientllm.reporting").joinpath("templates", name).read_text(encoding="utf-8").strip()


def tier_rules(evidence: Evidence) -> list[tuple[int, str]]:
    """Spells the tier rule out for every size of group on the page, such as (4, "1 | 2-3 | 4")."""
    groups: dict[tuple[str, str], int] = {}
    for row in evidence.rows:
        groups[row.axis, row.group] = groups.get((row.axis, row.group), 0) + 1
    rules = []
    for size in sorted({count for count in groups.values() if count > 1}):
        last_high, first_low = tier_bounds(size)
        spans = ((1, last_high), (last_high + 1, first_low - 1), (first_low, size))
        rules.append((size, " | ".join(_rank_span(first, last) for first, last in spans)))
    return rules


def _rank_span(first: int, last: int) -> str:
    if first > last:
        return "none"
    return str(first) if first == last else f"{first}{DASH}{last}"


def normalized_figures(evidence: Evidence) -> Iterable[dict[str, object]]:
    """Draws, group by group, the normalized values of every ranked metric, each with its table of figures."""
    from efficientllm.reporting.figures import Bars, normalized_bars

    groups: dict[tuple[str, str], list[registry.Row]] = {}
    for row in evidence.rows:
        groups.setdefault((row.axis, row.group), []).append(row)
    lines = {(line.axis, line.group, line.technique, line.metric): line for line in evidence.ranking}
    for (axis, group), rows in groups.items():
        entries = metrics.ranked_metrics(axis)
        columns = [[lines[axis, group, row.technique, entry.key] for row in rows] for entry in entries]
        label = f"{registry.AXIS_LABELS[axis]}: {rows[0].group_label}"
        key = identifier("figure", axis, group)
        panels = [
            Bars(entry.symbol, [line.normalized for line in column], [line.tier for line in column])
            for entry, column in zip(entries, columns, strict=True)
        ]
        averages = {row.label: lines[axis, group, row.technique, AVERAGE_RANK] for row in rows}
        best = [name for name, line in averages.items() if line.rank == 1]
        yield {
            "id": key,
            "axis": axis,
            "label": label,
            "svg": normalized_bars(
                key, f"{label}: normalized values", "One bar per technique and metric, from 0.1, the worst of the group, "
                "to 1.0, the best. The table below the figure holds the same numbers.", [row.label for row in rows], panels,
            ),
            "best": best,
            "symbols": [entry.symbol for entry in entries],
            "rows": [
                (row.label, [None if column[position].normalized is None else f"{column[position].normalized:.3f}" for column in columns])
                for position, row in enumerate(rows)
            ],
        }  # fmt: skip


def curve_figures(evidence: Evidence) -> Iterable[dict[str, object]]:
    """Draws the training curves of each axis, one panel per group, with a table of where each run ended."""
    from efficientllm.reporting.figures import Panel, training_curves

    for axis in tables.axes_of(evidence.rows):
        groups: dict[str, list[tuple[str, Curve]]] = {}
        for row in evidence.rows:
            if row.axis == axis and (axis, row.cell) in evidence.curves:
                groups.setdefault(row.group_label, []).append((row.label, evidence.curves[axis, row.cell]))
        if not groups:
            continue
        label = registry.AXIS_LABELS[axis]
        key = identifier("curves", axis)
        yield {
            "id": key,
            "axis": axis,
            "label": label,
            "svg": training_curves(
                key, f"{label}: loss against training tokens", "One panel per group. Thin lines are the training loss, lines "
                "with markers the held-out loss. The table below the figure says where each run ended.",
                [Panel(title, runs) for title, runs in groups.items()],
            ),
            "rows": [
                (tables.cell_labels(evidence.rows, axis, cell), _run_end(curve))
                for (own, cell), curve in evidence.curves.items()
                if own == axis
            ],
        }  # fmt: skip


def _run_end(curve: Curve) -> list[str | None]:
    """Renders tokens, last training loss, last held-out loss, seconds and joules of a run; None where not logged."""
    columns: list[list[float | None]] = [
        list(curve.tokens), curve.loss, curve.validation_loss, curve.seconds, curve.joules,
    ]  # fmt: skip
    last = [next((value for value in reversed(values) if value is not None), None) for values in columns]
    tokens = last[0]
    texts = [None if value is None else number(value) for value in last]
    texts[0] = None if tokens is None else f"{tokens:,.0f}"
    return texts
