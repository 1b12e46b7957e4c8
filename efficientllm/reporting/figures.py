"""Figures as inline SVG whose colours are CSS variables, so that they follow the page's theme."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientllm.reporting.text import DASH
from efficientllm.telemetry import Curve

# matplotlib draws in placeholder colours, which become the page's variables
_INK, _MUTED, _RULE = "#010101", "#010102", "#010103"
_TIERS = {"high": "#010104", "medium": "#010105", "low": "#010106", None: "#010107"}
_SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117")
_VARIABLES = {
    _INK: "currentColor", _MUTED: "var(--muted)", _RULE: "var(--rule)", _TIERS["high"]: "var(--bar-high)",
    _TIERS["medium"]: "var(--bar-medium)", _TIERS["low"]: "var(--bar-low)", _TIERS[None]: "var(--bar-none)",
    **{color: f"var(--series-{position})" for position, color in enumerate(_SERIES, start=1)},
}  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_POINTS = 100
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "efficientllm", "font.family": "sans-serif", "font.size": 9.0,
    "text.color": _INK, "axes.labelcolor": _MUTED, "axes.edgecolor": _RULE, "xtick.color": _MUTED,
    "ytick.color": _INK, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "path.simplify": True,
}  # fmt: skip


@dataclass(frozen=True)
class Bars:
    """One panel of `normalized_bars`: a metric's normalized values and tiers, row by row."""

    symbol: str
    values: Sequence[float | None]
    tiers: Sequence[str | None]


@dataclass(frozen=True)
class Panel:
    """One panel of `training_curves`: a group and its labelled runs."""

    title: str
    curves: Sequence[tuple[str, Curve]]


def normalized_bars(key: str, title: str, description: str, labels: Sequence[str], panels: Sequence[Bars]) -> Markup:
    """Draws one small bar chart per metric, side by side, with one bar per technique and its value printed.

    Args:
        key: Prefix of the ids; unique on the page.
        title: Accessible name.
        description: Accessible description.
        labels: Names of the techniques, top to bottom.
        panels: One per metric, left to right.

    Returns:
        An `<svg>` element.
    """
    left, panel_width, gap, top, bar = 104.0, 78.0, 12.0, 24.0, 19.0
    width = left + len(panels) * (panel_width + gap)
    height = top + len(labels) * bar + 6
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width / 72, height / 72))
        for position, panel in enumerate(panels):
            axes = figure.add_axes(
                ((left + position * (panel_width + gap)) / width, 6 / height, panel_width / width,
                 len(labels) * bar / height)
            )  # fmt: skip
            _bar_panel(axes, panel, labels if position == 0 else None)
        return _inline(figure, key, title, description)


def _bar_panel(axes: Axes, panel: Bars, labels: Sequence[str] | None) -> None:
    rows = range(len(panel.values))
    axes.set_xlim(0, 1.36)
    axes.set_ylim(len(panel.values) - 0.5, -0.5)
    for row, value, tier in zip(rows, panel.values, panel.tiers, strict=True):
        if value is not None:
            axes.barh(row, value, height=0.62, color=_TIERS[tier])
        axes.text(
            0.05 if value is None else value + 0.05, row, DASH if value is None else f"{value:.2f}", va="center",
            color=_MUTED if value is None else _INK,
        )  # fmt: skip
    axes.set_title(panel.symbol, loc="left", fontsize=9.5, pad=5, fontweight="bold")
    axes.set_xticks([])
    axes.set_yticks(list(rows), list(labels) if labels is not None else [""] * len(panel.values))
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


def training_curves(key: str, title: str, description: str, panels: Sequence[Panel]) -> Markup:
    """Draws loss against training tokens: the training loss thin, the held-out loss with markers.

    Args:
        key: Prefix of the ids; unique on the page.
        title: Accessible name.
        description: Accessible description.
        panels: One per group.

    Returns:
        An `<svg>` element.
    """
    columns = 3 if len(panels) == 3 else min(2, len(panels))
    lines = -(-len(panels) // columns)
    panel_width = 880.0 / max(2, columns)
    width, height = panel_width * columns, 238.0 * lines
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width / 72, height / 72))
        for position, panel in enumerate(panels):
            column, line = position % columns, position // columns
            axes = figure.add_axes(
                (
                    (column * panel_width + 44) / width,
                    1 - (line * 238 + 196) / height,
                    (panel_width - 62) / width,
                    168 / height,
                )
            )
            _curve_panel(axes, panel)
        return _inline(figure, key, title, description)


def _curve_panel(axes: Axes, panel: Panel) -> None:
    for position, (label, curve) in enumerate(panel.curves):
        color, marker = _SERIES[position % len(_SERIES)], _MARKERS[position % len(_MARKERS)]
        tokens, losses = thinned(curve.tokens, curve.loss)
        axes.plot(tokens, losses, color=color, linewidth=0.9, alpha=0.55)
        held_out = [
            (at, loss) for at, loss in zip(curve.tokens, curve.validation_loss, strict=True) if loss is not None
        ]
        axes.plot(
            [at for at, _ in held_out], [loss for _, loss in held_out], color=color, marker=marker, markersize=4.2,
            linewidth=1.6, label=label, markeredgecolor=color,
        )  # fmt: skip
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss (nat/token)")
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_MUTED)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda tokens, _: _short(tokens)))
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", handlelength=1.6, labelspacing=0.25)


def _short(tokens: float) -> str:
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{suffix}"
    return f"{tokens:g}"


def thinned(tokens: Sequence[float], losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Averages neighbouring points of a long curve, so that the page stays small.

    Args:
        tokens: Positions.
        losses: Losses; None where none was logged.

    Returns:
        At most 100 positions and losses, each the mean of a run of equally many logged points.
    """
    logged = [(at, loss) for at, loss in zip(tokens, losses, strict=True) if loss is not None]
    size = max(1, -(-len(logged) // _POINTS))
    bins = [logged[start : start + size] for start in range(0, len(logged), size)]
    return [sum(at for at, _ in points) / len(points) for points in bins], [
        sum(loss for _, loss in points) / len(points) for points in bins
    ]


def _inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Turns a figure into an SVG element with unique ids, an accessible name, and the page's colours and font."""
    stream = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # a <style> within an inline SVG would style the whole page; group ids serve nobody and would not be unique
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r"<g id=\"[^\"]*\"/>"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found.group()), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    opening = re.match(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="0 0 ([0-9.]+) [0-9.]+"', svg)
    assert opening is not None and box is not None
    width = float(box.group(1))
    head = (
        f'<svg viewBox="{box.group(0)[9:-1]}" role="img" aria-labelledby="{key}-title {key}-desc" '
        f'style="width:{width * 4 / 3:.0f}px;min-width:{width:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    )
    return Markup(head + svg[opening.end() :].strip())
