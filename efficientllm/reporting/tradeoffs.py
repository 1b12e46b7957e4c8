"""Trade-offs: quality against energy, memory and latency, with the Pareto front of each pair; without quality, speed."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from efficientllm import metrics
from efficientllm.ranking.pareto import pareto_front
from efficientllm.ranking.results import Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.figures import Point, trade_off
from efficientllm.reporting.groups import Group, groups_of
from efficientllm.reporting.plot import axis_over
from efficientllm.reporting.text import Scale, identifier, listing, scaled, scaled_estimate

COSTS: tuple[str, ...] = ("energy_per_token", "accelerator_memory_utilization", "average_latency")
"""What quality is paid with."""

_COSTS_OF_SPEED = ("energy_per_token", "accelerator_memory_utilization")

_MARGIN = 0.1


@dataclass(frozen=True)
class TradeOff:
    """One panel: its drawing, or why there is none, and who is on the front."""

    svg: Markup | None
    cost: str
    finding: str


@dataclass(frozen=True)
class TradeOffs:
    """A group's panels, and the numbers behind them."""

    id: str
    group: Group
    note: str | None
    panels: list[TradeOff]
    heads: list[str]
    rows: list[tuple[str, list[str | None], str]]


def trade_offs(evidence: Evidence) -> Iterator[TradeOffs]:
    """Draws each group's quality against what it costs; where fewer than two rows have any, its speed."""
    for group in groups_of(evidence):
        worth, costs, note = metrics.PERFORMANCE[group.axis], COSTS, None
        if len([row for row in group.rows if group.standings[row.technique, worth].rank is not None]) < 2:
            note = f"Fewer than two rows have a {metrics.metric(worth).label.lower()}: speed is shown instead."
            worth, costs = metrics.THROUGHPUT[group.axis], _COSTS_OF_SPEED
        fronts = {cost: _front(group, worth, cost) for cost in costs}
        scales = {key: group.scale(key) for key in (worth, *costs)}
        yield TradeOffs(
            group.id("tradeoff"), group, note,
            [_panel(group, worth, cost, fronts[cost], scales) for cost in costs],
            [_label(metrics.metric(key), scales[key]) for key in scales],
            [
                (row.label, [_text(group.results.get((row.technique, key)), scale) for key, scale in scales.items()],
                 listing(metrics.metric(cost).symbol for cost in costs if fronts[cost].get(row.technique)))
                for row in group.rows
            ],
        )  # fmt: skip


def _front(group: Group, worth: str, cost: str) -> dict[str, bool]:
    """Of the rows that have a rank in both metrics, whether they are on the front."""
    entries = [metrics.metric(worth), metrics.metric(cost)]
    lines = [[group.standings[row.technique, entry.key] for entry in entries] for row in group.rows]
    front = pareto_front(
        [[line.value if line.rank is not None else None for line in pair] for pair in lines],
        [entry.direction for entry in entries],
    )
    return {row.technique: on for row, on in zip(group.rows, front, strict=True) if on is not None}


def _panel(group: Group, worth: str, cost: str, front: dict[str, bool], scales: dict[str, Scale]) -> TradeOff:
    entry, price = metrics.metric(worth), metrics.metric(cost)
    if len(front) < 2:
        return TradeOff(None, price.label, "fewer than two rows have both figures, so there is no trade-off to draw")
    points = []
    for series, row in enumerate(group.rows):
        if row.technique not in front:
            continue
        x, x_ends = _scaled(group.results[row.technique, cost], scales[cost])
        y, y_ends = _scaled(group.results[row.technique, worth], scales[worth])
        points.append(Point(row.label, series, x, y, x_ends, y_ends, front[row.technique]))
    modelled = any(group.results[technique, cost].source == "modelled" for technique in front)
    label = _label(price, scales[cost]) + (", modelled" if modelled else "")
    across = [end for point in points for end in (point.x, *(point.x_ends or ()))]
    upright = [end for point in points for end in (point.y, *(point.y_ends or ()))]
    finding = f"On the front: {listing(point.label for point in points if point.front)}."
    return TradeOff(
        trade_off(
            identifier(group.id("tradeoff"), cost), f"{group.title}: {entry.label} against {price.label}",
            f"Up and left is better. {finding}", f"{entry.symbol} against {price.symbol}",
            axis_over(label, across, better_low=price.direction == "higher", margin=_MARGIN),
            axis_over(_label(entry, scales[worth]), upright, better_low=entry.direction == "lower", margin=_MARGIN),
            points,
        ), price.label, finding,
    )  # fmt: skip


def _scaled(result: Result, scale: Scale) -> tuple[float, tuple[float, float] | None]:
    value, low, high = scaled(result, scale)
    return value, None if low is None or high is None else (low, high)


def _label(entry: metrics.Metric, scale: Scale) -> str:
    return f"{entry.label} ({scale.unit})" if scale.unit else entry.label


def _text(result: Result | None, scale: Scale) -> str | None:
    if result is None or result.value is None:
        return None
    value, interval = scaled_estimate(result, scale)
    return f"{value} ({interval})" if interval else value
