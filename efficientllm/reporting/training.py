"""Training curves: loss against tokens and against joules, a figure per group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.figures import Line, lines, lines_axes, swatch
from efficientllm.reporting.groups import Group, groups_of
from efficientllm.reporting.text import number
from efficientllm.telemetry import Curve

_POINTS = 40
_LOSS = "loss (nat/token)"


@dataclass(frozen=True)
class TrainingFigure:
    """A group's curves, and where each run ended."""

    id: str
    group: Group
    panels: list[Markup]
    legend: list[tuple[Markup, str]]
    rows: list[tuple[str, list[str | None]]]
    modelled: bool
    without_energy: bool


def training_figures(evidence: Evidence) -> Iterator[TrainingFigure]:
    """Draws the training curves of each group that has any."""
    for group in groups_of(evidence):
        runs = [
            (series, row.label, evidence.curves[row.axis, row.cell])
            for series, row in enumerate(group.rows)
            if (row.axis, row.cell) in evidence.curves
        ]
        if not runs:
            continue
        sources = {evidence.training_energy.get((row.axis, row.cell)) for row in group.rows}
        by_energy = _panel(group, "joules", "training energy (J)", "Loss against joules", runs)
        panels = [_panel(group, "tokens", "training tokens", "Loss against tokens", runs), by_energy]
        yield TrainingFigure(
            group.id("curves"), group, [panel for panel in panels if panel is not None],
            [(swatch(series), label) for series, label, _ in runs],
            [(label, _end(curve)) for _, label, curve in runs], "modelled" in sources, by_energy is None,
        )  # fmt: skip


def _panel(
    group: Group, position: str, x_label: str, heading: str, runs: Sequence[tuple[int, str, Curve]]
) -> Markup | None:
    drawn = []
    for series, _, curve in runs:
        places: Sequence[float | None] = getattr(curve, position)
        trained = thinned(places, curve.loss)
        tested = [
            (at, loss)
            for at, loss in zip(places, curve.validation_loss, strict=True)
            if at is not None and loss is not None
        ]
        drawn += [Line(series, *trained, thin=True)] if trained[0] else []
        drawn += [Line(series, [at for at, _ in tested], [loss for _, loss in tested])] if tested else []
    if not drawn:
        return None
    across, upright = lines_axes(x_label, _LOSS, drawn, heights=_compared(drawn))
    shown = [
        replace(line, xs=xs, ys=ys) for line in drawn for xs, ys in (entering(line.xs, line.ys, upright.high),) if xs
    ]
    return lines(
        f"{group.id('curves')}-{position}", f"{group.title}: {heading.lower()}",
        "Thin lines are the training loss, lines with markers the loss on held-out text.", heading,
        across, upright, shown,
    )  # fmt: skip


def _compared(drawn: Sequence[Line]) -> list[float]:
    """The losses that a panel is laid out over: the first ones would press the differences between the runs together."""
    middle = max(x for line in drawn for x in line.xs) / 2
    return [y for line in drawn for x, y in zip(line.xs, line.ys, strict=True) if x >= middle or not line.thin]


def entering(xs: Sequence[float], ys: Sequence[float], top: float) -> tuple[list[float], list[float]]:
    """Cuts the start of a line off where it lies above a panel, and lets later peaks end at its edge.

    Args:
        xs: Positions in order.
        ys: Losses.
        top: The greatest loss that the panel shows.

    Returns:
        Positions and losses from where the line first reaches the panel; empty where it never does.
    """
    first = next((at for at, y in enumerate(ys) if y <= top), None)
    if first is None:
        return [], []
    rest_x, rest_y = list(xs[first:]), [min(y, top) for y in ys[first:]]
    if first == 0:
        return rest_x, rest_y
    share = (ys[first - 1] - top) / (ys[first - 1] - ys[first])
    return [xs[first - 1] + share * (xs[first] - xs[first - 1]), *rest_x], [top, *rest_y]


def thinned(places: Sequence[float | None], losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Averages neighbouring points of a long curve, so that the page stays small.

    Args:
        places: Positions; None where none was read.
        losses: Losses; None where none was logged.

    Returns:
        At most 40 positions and losses, each the mean of a run of equally many logged points.
    """
    logged = [
        (at, loss) for at, loss in zip(places, losses, strict=True) if at is not None and loss is not None
    ]  # fmt: skip
    size = max(1, -(-len(logged) // _POINTS))
    bins = [logged[start : start + size] for start in range(0, len(logged), size)]
    return [sum(at for at, _ in points) / len(points) for points in bins], [
        sum(loss for _, loss in points) / len(points) for points in bins
    ]


def _end(curve: Curve) -> list[str | None]:
    """Renders tokens, last training loss, last held-out loss, seconds and joules of a run; None where not logged."""
    columns: list[Sequence[float | None]] = [
        curve.tokens, curve.loss, curve.validation_loss, curve.seconds, curve.joules,
    ]  # fmt: skip
    last = [next((value for value in reversed(values) if value is not None), None) for values in columns]
    texts = [None if value is None else number(value) for value in last]
    texts[0] = None if last[0] is None else f"{last[0]:,.0f}"
    return texts
