"""Puts the evidence into the templates: one HTML page without any outside request."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from efficientllm import __version__, registry
from efficientllm.measurement.statistics import NOISY
from efficientllm.ranking.compare import ResultSet
from efficientllm.ranking.normalize import FLOOR
from efficientllm.ranking.paper import paper_source
from efficientllm.ranking.rank import RESOLUTION
from efficientllm.ranking.stability import DRAWS
from efficientllm.ranking.tiers import tier_bounds
from efficientllm.reporting import (
    appendix,
    certainty,
    comparison,
    flags,
    gaps,
    normalized,
    parts,
    serving,
    summary,
    tables,
    tradeoffs,
    training,
)
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import cells_listing
from efficientllm.reporting.machine import machine_facts
from efficientllm.reporting.templating import template_environment
from efficientllm.reporting.text import span


def render(evidence: Evidence, sets: Sequence[ResultSet] = ()) -> str:
    """Renders the report; the same evidence yields the same bytes.

    Args:
        evidence: The run's records, curves and descriptions.
        sets: This run's result set and those that it is compared with.

    Returns:
        A complete HTML document.
    """
    style, script = _asset("style.css"), _asset("report.js")
    missing = gaps.Gaps(evidence)
    cards = summary.answers(evidence)
    quality = appendix.quality_tables(evidence)
    context = {
        "version": __version__,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _digest(style),
        "script_hash": _digest(script),
        "finding": summary.finding(cards),
        "cards": cards,
        "machine": machine_facts(evidence),
        "parts": parts.parts(evidence),
        "mixed": parts.mixed_groups(evidence),
        "cards_used": parts.cards(evidence),
        "counts": summary.counts(evidence),
        "gaps": missing.all(),
        "flags": flags.flags(evidence),
        "ranking": tables.ranking_tables(evidence, missing),
        "values": tables.value_tables(evidence, missing),
        "trade_offs": list(tradeoffs.trade_offs(evidence)),
        "figures": list(normalized.normalized_figures(evidence)),
        "curves": list(training.training_figures(evidence)),
        "without_curve": _by_reason(evidence),
        "serving": list(serving.serving_figures(evidence)),
        "paper": list(certainty.paper_tables(evidence)),
        "paper_source": paper_source(),
        "stability": list(certainty.stability_tables(evidence)),
        "stability_finding": certainty.stability_finding(evidence),
        "draws": DRAWS,
        "loose": certainty.LOOSE,
        "comparison": comparison.compare(evidence, sets),
        "quality": quality,
        "unlearned": sum(row.verdict not in (None, "better") for table in quality for row in table.rows),
        "compared": sum(row.verdict is not None for table in quality for row in table.rows),
        "profile": evidence.profile,
        "techniques": registry.techniques(evidence.rows),
        "methods": appendix.metric_methods(evidence),
        "reproductions": appendix.reproductions(evidence),
        "provenance": appendix.provenance(evidence),
        "downloads": appendix.downloads(evidence),
        "floor": FLOOR,
        "resolution": RESOLUTION,
        "noise_limit": NOISY,
        "tier_rules": tier_rules(evidence),
    }
    return template_environment("efficientllm.reporting").get_template("report.html.j2").render(context)


def _by_reason(evidence: Evidence) -> list[tuple[str, str]]:
    """Names the cells without a curve, those of one reason together."""
    cells: dict[tuple[registry.Axis, str], list[str]] = {}
    for (axis, cell), reason in evidence.without_curve.items():
        cells.setdefault((axis, reason), []).append(cell)
    return [(cells_listing(evidence.rows, axis, alike), reason) for (axis, reason), alike in cells.items()]


def _asset(name: str) -> str:
    """Reads a stylesheet or script without its indentation and whole-line comments, which only its authors need."""
    source = resources.files("efficientllm.reporting").joinpath("templates", name).read_text(encoding="utf-8")
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def tier_rules(evidence: Evidence) -> list[tuple[int, str]]:
    """Spells the tier rule out for every size of group on the page, such as (4, "1 | 2-3 | 4")."""
    groups: dict[tuple[str, str], int] = {}
    for row in evidence.rows:
        groups[row.axis, row.group] = groups.get((row.axis, row.group), 0) + 1
    rules = []
    for size in sorted({count for count in groups.values() if count > 1}):
        last_high, first_low = tier_bounds(size)
        spans = ((1, last_high), (last_high + 1, first_low - 1), (first_low, size))
        rules.append((size, " | ".join("none" if first > last else span((first, last)) for first, last in spans)))
    return rules
