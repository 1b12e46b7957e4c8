"""A small plot in the page's style: matplotlib's artists, ticks and SVG, without the weight of its axes.

A report has a hundred panels; matplotlib's `Axes` would take longer to build than all measurements to read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from efficientllm.reporting.svg import INK, MUTED, RULE, inline
from efficientllm.reporting.text import MINUS

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
FONT = 11.0
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "efficientllm", "font.family": "sans-serif", "text.parse_math": False,
    "figure.facecolor": "none", "savefig.facecolor": "none", "path.simplify": False,
}  # fmt: skip
_LEAST_DECADES, _MOST_DECADES = 0.7, 100.0
_RESOLUTION = 1e-9
"""Values that differ by less, relative to their size, are shown as one."""


@dataclass(frozen=True)
class Axis:
    """How a quantity is laid out along one side of a plot.

    Args:
        label: Name and unit.
        low: Least value that is shown.
        high: Greatest value that is shown.
        log: Whether equal ratios take equal lengths.
        better_low: Whether low values stand where high ones usually do.
        ticks: Values to be marked; chosen where there are none.
    """

    label: str
    low: float
    high: float
    log: bool = False
    better_low: bool = False
    ticks: tuple[float, ...] = ()

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the start to 1 at the end."""
        low, high, at = (math.log(item) if self.log else item for item in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return 1.0 - share if self.better_low else share

    def marked(self) -> list[float]:
        """The values of the ticks."""
        if self.ticks:
            return list(self.ticks)
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            found = [float(tick) for tick in MaxNLocator(4).tick_values(self.low, self.high)]
        slack = 0.0 if self.log else 1e-9 * (self.high - self.low)
        return [tick for tick in found if self.low - slack <= tick <= self.high + slack]


def axis_over(
    label: str, values: Sequence[float], *, log: bool = False, better_low: bool = False, margin: float = 0.08
) -> Axis:
    """Lays out an axis over values with a margin at both ends; logarithmic where asked for and all are positive."""
    low, high = min(values), max(values)
    if log and low > 0 and _LEAST_DECADES <= math.log10(high) - math.log10(low) <= _MOST_DECADES:
        factor = (high / low) ** margin
        return Axis(label, low / factor, high * factor, log=True, better_low=better_low)
    size = max(abs(low), abs(high))
    room = ((high - low) if high - low > _RESOLUTION * size else size) * margin or 1.0
    return Axis(label, low - room, high + room, better_low=better_low)


class Plot:
    """A panel with axes, drawn on in its data's coordinates.

    Args:
        width: In points.
        height: In points.
        x: The horizontal axis.
        y: The vertical axis.
        heading: Text above the panel.
    """

    def __init__(self, width: float, height: float, x: Axis, y: Axis, heading: str) -> None:
        self._x, self._y = x, y
        self.canvas = Canvas(width, height)
        self.left, self.bottom, self.right, self.top = 50.0, 40.0, width - 12.0, height - 40.0
        self.canvas.text(2, height - 12, heading, weight="bold", size=FONT + 1)
        self.canvas.text(2, height - 28, y.label, color=MUTED)
        self.canvas.text((self.left + self.right) / 2, 6, x.label, color=MUTED, align="center")
        levels = [(self._at_y(tick), text) for tick, text in tick_labels(y.marked())]
        self.canvas.segments([((self.left, at), (self.right, at)) for at, _ in levels], RULE, 0.7)
        for at, text in levels:
            self.canvas.text(self.left - 5, at - 3.8, text, color=MUTED, align="right")
        for tick, text in tick_labels(x.marked()):
            self.canvas.text(self._at_x(tick), self.bottom - 15, text, color=MUTED, align="center")
        self.canvas.segments([((self.left, self.bottom), (self.right, self.bottom))], MUTED, 0.9)

    def _at_x(self, value: float) -> float:
        return self.left + self._x.share(value) * (self.right - self.left)

    def _at_y(self, value: float) -> float:
        return self.bottom + self._y.share(value) * (self.top - self.bottom)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pair of values lies on the canvas, in points."""
        return self._at_x(x), self._at_y(y)

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str, **style: Any) -> None:
        """Joins points given in the data's coordinates; `style` as of matplotlib's `Line2D`."""
        self.canvas.line([self._at_x(x) for x in xs], [self._at_y(y) for y in ys], color, **style)


class Canvas:
    """A blank figure that is drawn on in points from its lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._points = Affine2D()

    def text(
        self, x: float, y: float, text: str, *, color: str = INK, align: str = "left", size: float = FONT,
        weight: str = "normal",
    ) -> None:  # fmt: skip
        """Writes a text whose baseline starts, ends or is centred at a point."""
        anchor: dict[str, Any] = {"ha": align, "va": "baseline", "transform": self._points, "parse_math": False}
        self._figure.add_artist(Text(x, y, text, color=color, fontsize=size, fontweight=weight, **anchor))

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str, **style: Any) -> None:
        """Joins points by a line."""
        self._figure.add_artist(Line2D(xs, ys, color=color, solid_capstyle="butt", transform=self._points, **style))

    def segments(
        self, ends: Sequence[tuple[tuple[float, float], tuple[float, float]]], color: str, width: float
    ) -> None:
        """Draws separate straight lines, as one path."""
        if ends:
            path = Path([point for pair in ends for point in pair], [Path.MOVETO, Path.LINETO] * len(ends))
            self._figure.add_artist(
                PathPatch(path, edgecolor=color, fill=False, linewidth=width, transform=self._points)
            )

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fills a rectangle."""
        self._figure.add_artist(Rectangle((x, y), width, height, facecolor=color, linewidth=0, transform=self._points))

    def svg(self, key: str, title: str, description: str) -> Markup:
        """Returns the drawing as an `<svg>` element; see `svg.inline`."""
        with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
            return inline(self._figure, key, title, description)


def tick_labels(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Renders the ticks of an axis, all with as many digits as the one that needs most: rounded, equal steps would differ."""
    scaled = [tick / _size(tick)[0] for tick in ticks]
    digits = next(
        (most for most in range(3, 9) if all(math.isclose(float(f"{x:.{most}g}"), x, rel_tol=1e-9) for x in scaled)), 3
    )
    return [(tick, short(tick, digits)) for tick in ticks]


def short(value: float, digits: int = 3) -> str:
    """Renders a number, such as "2k", "0.05" or "1.5M"."""
    size, suffix = _size(value)
    return f"{value / size:.{digits}g}{suffix}".replace("-", MINUS)


def _size(value: float) -> tuple[float, str]:
    return next((known for known in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= known[0]), (1.0, ""))
