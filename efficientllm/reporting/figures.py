"""The report's figures: normalized bars, trade-offs with their Pareto front, and lines."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from efficientllm.ranking.normalize import FLOOR
from efficientllm.reporting.plot import FONT, MARKERS, Axis, Canvas, Plot, axis_over
from efficientllm.reporting.svg import INK, MUTED, SERIES, TIER_COLORS
from efficientllm.reporting.text import DASH

PANEL = (340.0, 236.0)
"""Width and height of a plot in points."""

# the markers of `MARKERS` as outlines in a box of -6 to 6
_OUTLINES = (
    "M0-4A4 4 0 1 0 0 4A4 4 0 1 0 0-4z", "M-3.6-3.6H3.6V3.6H-3.6z", "M0-4.4L4.2 3.6H-4.2z", "M0-4.8L4.2 0L0 4.8L-4.2 0z",
    "M0 4.4L4.2-3.6H-4.2z", "M-1.4-4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4z",
    "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z", "M-4.4 0L3.6-4.2V4.2z", "M4.4 0L-3.6-4.2V4.2z",
)  # fmt: skip

_Box = tuple[float, float, float, float]
# where a name may stand: to the right, left or centre of its point, and how many lines above it; the best first
_PLACES = (
    (1, 0.0), (-1, 0.0), (0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0), (-1, 1.0), (-1, -1.0),
    (0, 2.1), (0, -2.1), (1, 2.0), (1, -2.0), (-1, 2.0), (-1, -2.0),
    (0, 3.2), (0, -3.2), (1, 3.0), (1, -3.0), (-1, 3.0), (-1, -3.0),
)  # fmt: skip
_BESIDE_ANOTHER = 120.0
"""What it costs a name to stand nearer to another point than to its own, in square points of covered drawing."""


@dataclass(frozen=True)
class Point:
    """A technique in a trade-off: its place, the ends of its intervals, and whether it is on the Pareto front."""

    label: str
    series: int
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    front: bool


@dataclass(frozen=True)
class Line:
    """A series of a plot: its points in order, and whether it is drawn thin, without markers."""

    series: int
    xs: Sequence[float]
    ys: Sequence[float]
    thin: bool = False


def swatch(series: int) -> Markup:
    """Returns the marker of a series as a small `<svg>` for a legend."""
    return Markup(
        '<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true"><path fill="var(--series-{})" d="{}"/></svg>'
    ).format(series % len(SERIES) + 1, _OUTLINES[series % len(_OUTLINES)])


def bars(
    key: str,
    title: str,
    heading: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    tiers: Sequence[str | None],
) -> Markup:
    """Draws the normalized values of one metric, a bar per technique, each with its value printed.

    Args:
        key: Prefix of the ids; unique on the page.
        title: Accessible name.
        heading: Text above the bars.
        labels: Names of the techniques, top to bottom.
        values: Normalized values; None where there is none.
        tiers: Tiers of their ranks.
    """
    left, length, step, top = 124.0, 84.0, 19.0, 22.0
    height = top + step * len(labels) + 2
    canvas = Canvas(left + length + 36, height)
    canvas.text(2, height - 13, heading, weight="bold", size=FONT + 1)
    base = height - top - step * len(labels)
    canvas.segments([((left, base), (left, height - top))], MUTED, 0.8)
    for row, (label, value, tier) in enumerate(zip(labels, values, tiers, strict=True)):
        at = height - top - step * (row + 1)
        canvas.text(left - 6, at + 5.5, clipped(label, 19), align="right")
        if value is None:
            canvas.text(left + 5, at + 5.5, DASH, color=MUTED)
            continue
        canvas.bar(left, at + 3.5, length * value, step - 7, TIER_COLORS[tier])
        canvas.text(left + length * value + 5, at + 5.5, f"{value:.2f}")
    return canvas.svg(key, title, f"Bars from {FLOOR}, the worst of the group, to 1.0, the best.")


def trade_off(
    key: str, title: str, description: str, heading: str, x: Axis, y: Axis, points: Sequence[Point]
) -> Markup:
    """Draws techniques in two metrics, both laid out so that up and left is better, with the front as a stepped line.

    Args:
        key: Prefix of the ids; unique on the page.
        title: Accessible name.
        description: Accessible description.
        heading: Text above the panel.
        x: The costs' axis.
        y: The quality's axis.
        points: The techniques.
    """
    plot = Plot(*PANEL, x, y, heading)
    plot.canvas.text(plot.right, plot.top + 4, "\N{NORTH WEST ARROW} better", color=MUTED, align="right", size=FONT - 1)
    places = [plot.at(point.x, point.y) for point in points]
    taken = [(at_x - 6, at_y - 6, at_x + 6, at_y + 6) for at_x, at_y in places]
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    for before, after in itertools.pairwise(front):
        corners = [(before.x, before.y), (after.x, before.y), (after.x, after.y)]
        plot.line([x for x, _ in corners], [y for _, y in corners], MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
        taken += [_segment(plot, *ends) for ends in itertools.pairwise(corners)]
    for point in points:
        color = SERIES[point.series % len(SERIES)]
        for spread, across in ((point.x_ends, True), (point.y_ends, False)):
            if spread is not None:
                xs, ys = (spread, (point.y, point.y)) if across else ((point.x, point.x), spread)
                plot.line(xs, ys, color, linewidth=1.0, alpha=0.7)
                taken.append(_segment(plot, (xs[0], ys[0]), (xs[1], ys[1])))
        plot.line(
            [point.x], [point.y], color, linestyle="none", marker=MARKERS[point.series % len(MARKERS)],
            markersize=8.5 if point.front else 6.5, markerfacecolor=color if point.front else "none", markeredgewidth=1.4,
        )  # fmt: skip
    names = [(plot.right - 50, plot.top + 2, plot.right, plot.top + 16)]  # the word above
    for point in sorted(points, key=lambda point: not point.front):
        _label(plot, point, places, taken, names)
    return plot.canvas.svg(key, title, description)


def _segment(plot: Plot, one: tuple[float, float], other: tuple[float, float]) -> _Box:
    """The box around a line between two points of a plot."""
    (left, low), (right, high) = plot.at(*one), plot.at(*other)
    return min(left, right) - 1, min(low, high) - 1, max(left, right) + 1, max(low, high) + 1


def _label(
    plot: Plot, point: Point, places: Sequence[tuple[float, float]], taken: list[_Box], names: list[_Box]
) -> None:
    """Writes a point's name where it covers the least; a line leads to one that stands apart.

    Args:
        plot: The panel.
        point: The point.
        places: Where all points lie.
        taken: Where marks and lines are drawn; the name's own line is added.
        names: Where names stand, which none should cover or strike through; the name is added.
    """
    text, size = clipped(point.label, 20), FONT - 0.5
    color, weight = (INK, "bold") if point.front else (MUTED, "normal")
    at_x, at_y = plot.at(point.x, point.y)
    width, height = (0.7 if point.front else 0.66) * size * len(text), size + 1.5
    boxes: dict[_Box, tuple[int, float]] = {}
    for right, up in _PLACES:
        left = at_x + 9 * right - width * (1 - right) / 2
        bottom = at_y - height / 2 + up * (height + (2 if right else 3))
        boxes[left, bottom, left + width, bottom + height] = right, up

    def leader(box: _Box) -> _Box | None:
        right, up = boxes[box]
        if abs(up) < 2:
            return None
        start, end = (at_y + 6, box[1]) if up > 0 else (box[3], at_y - 6)
        return at_x + 6 * right - 0.5, start, at_x + 6 * right + 0.5, end

    def cost(box: _Box) -> float:
        outside = max(0, plot.left + 2 - box[0]) + max(0, box[2] - PANEL[0] + 2)
        outside += max(0, plot.bottom - box[1]) + max(0, box[3] - plot.top - 10)
        own = _distance(box, (at_x, at_y))
        beside = any(_distance(box, other) < own - 4 for other in places)
        line = leader(box)
        struck = sum(_overlap(line, name) for name in names) if line else 0.0
        covered = sum(_overlap(box, other) for other in taken) + 4 * sum(_overlap(box, name) for name in names)
        return 100 * outside + _BESIDE_ANOTHER * beside + covered + 6 * struck

    box = min(boxes, key=cost)
    names.append(box)
    right, up = boxes[box]
    if line := leader(box):
        taken.append(line)
        _, low, _, high = line
        ends = (low, high) if up > 0 else (high, low)
        plot.canvas.line([at_x + 3 * right, at_x + 9 * right], ends, MUTED, linewidth=0.6)
    # anchored beside the mark, since the reader's font decides how wide the text is
    align = {1: "left", 0: "center", -1: "right"}[right]
    plot.canvas.text(at_x + 9 * right, box[1] + 2, text, size=size, color=color, weight=weight, align=align)


def _distance(box: _Box, point: tuple[float, float]) -> float:
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    return math.hypot(across, max(box[1] - point[1], 0.0, point[1] - box[3]))


def _overlap(one: _Box, other: _Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    upright = min(one[3], other[3]) - max(one[1], other[1])
    return across * upright if across > 0 and upright > 0 else 0.0


def lines(key: str, title: str, description: str, heading: str, x: Axis, y: Axis, series: Sequence[Line]) -> Markup:
    """Draws series over a common axis; the legend stands beside the figure, by `swatch`.

    Args:
        key: Prefix of the ids; unique on the page.
        title: Accessible name.
        description: Accessible description.
        heading: Text above the panel.
        x: The horizontal axis.
        y: The vertical axis.
        series: The lines.
    """
    plot = Plot(*PANEL, x, y, heading)
    for line in series:
        color = SERIES[line.series % len(SERIES)]
        if line.thin:
            plot.line(line.xs, line.ys, color, linewidth=0.9, alpha=0.5)
        else:
            plot.line(line.xs, line.ys, color, linewidth=1.5, marker=MARKERS[line.series % len(MARKERS)], markersize=5)
    return plot.canvas.svg(key, title, description)


def clipped(text: str, most: int) -> str:
    """Shortens a long name for a drawing, where it cannot wrap; the table beside it has the whole name."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def lines_axes(
    x_label: str, y_label: str, series: Sequence[Line], *, log: bool = False, ticks: Sequence[float] = (),
    heights: Sequence[float] = (),
) -> tuple[Axis, Axis]:  # fmt: skip
    """Lays out the axes of `lines` over everything in them, the vertical one over `heights` where any are given."""
    xs = [x for line in series for x in line.xs]
    ys = heights or [y for line in series for y in line.ys]
    across = axis_over(x_label, xs, log=log, margin=0.03)
    if ticks:
        across = Axis(across.label, across.low, across.high, log=across.log, ticks=tuple(ticks))
    return across, axis_over(y_label, ys, log=log)
