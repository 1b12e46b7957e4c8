"""Ranks anybody's tidy table: several models of a group averaged first, then every metric as in the pipeline's own tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

from efficientllm.errors import DataError, ParameterError, unknown_name
from efficientllm.metrics import Direction
from efficientllm.ranking.pareto import pareto_front
from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.results import Ranked, Result, rank_column
from efficientllm.ranking.score import SCORE, weighted_scores
from efficientllm.ranking.tidy import Line, group_title

_MOST_ROWS = 1000


@dataclass(frozen=True)
class TechniqueStanding:
    """A line of the output: a technique's standing in one metric, with what its table says of the metric and the value.

    Args:
        line: Value, normalized value, rank, ties, tier and stability.
        direction: Which direction is better.
        unit: The metric's unit, where the table names one.
        ci_low: Lower end of the value's interval.
        ci_high: Upper end.
        reason: Why there is no value.
    """

    line: Ranked
    direction: Direction
    unit: str = ""
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class GroupRanking:
    """The ranking of one group.

    Args:
        axis: The axis, empty where the table has none.
        group: The group.
        techniques: Its techniques, in the table's order.
        metrics: Its metrics, in the table's order; the score last.
        standings: By metric, then technique.
        pareto_metrics: The metrics that the Pareto front is of.
        front: For each technique whether it is on the front; None where it lacks one of these metrics.
    """

    axis: str
    group: str
    techniques: tuple[str, ...]
    metrics: tuple[str, ...]
    standings: Mapping[str, Mapping[str, TechniqueStanding]]
    pareto_metrics: tuple[str, ...]
    front: Mapping[str, bool | None]

    @property
    def title(self) -> str:
        """Names axis and group."""
        return group_title(self.axis, self.group)

    def reasons(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Lists why values are missing: metric, reason, and the techniques that lack the value for it."""
        alike: dict[tuple[str, str], list[str]] = {}
        for metric, column in self.standings.items():
            for name, standing in column.items():
                if standing.reason:
                    alike.setdefault((metric, standing.reason), []).append(name)
        return [(metric, reason, tuple(names)) for (metric, reason), names in alike.items()]


def rank_table(
    lines: Sequence[Line], weights: Mapping[str, float] | None = None, pareto: Sequence[str] | None = None
) -> list[GroupRanking]:
    """Ranks every group of a tidy table by each of its metrics.

    Where a group has several models, each technique's value is the mean over the models, as in the paper, and the
    half-widths of their intervals are added in quadrature (a model without an interval adds nothing). A technique that lacks
    a model which others of its group have in that metric has no mean: its value is missing.

    Args:
        lines: Output of `tidy.read_tidy`.
        weights: Weights of all metrics, where a score is asked for; see `score.weighted_scores`.
        pareto: The metrics whose Pareto front is marked; all of a group's where it is None.

    Returns:
        The groups in the table's order.

    Raises:
        ParameterError: A metric of `pareto` is not in the table, or the table has a metric of the score's name.
        DataError: A group has too many techniques to be compared with each other.
    """
    known = dict.fromkeys(line.metric for line in lines)
    for metric in pareto or ():
        if metric not in known:
            raise unknown_name("metric of the Pareto front", metric, known)
    if weights is not None and SCORE in known:
        raise ParameterError(f"the table has a metric {SCORE!r} of its own: rename it, or rank without weights")
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.axis, line.group), []).append(line)
    return [_rank_group(axis, group, members, weights, pareto) for (axis, group), members in groups.items()]


def _rank_group(
    axis: str, group: str, lines: list[Line], weights: Mapping[str, float] | None, pareto: Sequence[str] | None
) -> GroupRanking:
    techniques = tuple(dict.fromkeys(line.technique for line in lines))
    if len(techniques) > _MOST_ROWS:
        raise DataError(
            f"the group {group!r} has {len(techniques)} techniques: at most {_MOST_ROWS} are ranked at a time"
        )
    by_metric: dict[str, list[Line]] = {}
    for line in lines:
        by_metric.setdefault(line.metric, []).append(line)
    standings = {metric: _standings(_mean_over_models(techniques, own)) for metric, own in by_metric.items()}
    front_of = tuple(metric for metric in by_metric if pareto is None or metric in pareto)
    points = [[_ranked_value(standings[metric][name]) for metric in front_of] for name in techniques]
    front = pareto_front(points, [standings[metric][techniques[0]].direction for metric in front_of])
    if weights is not None:
        normalized = {
            metric: {name: column[name].line.normalized for name in techniques} for metric, column in standings.items()
        }
        scores = weighted_scores(normalized, weights)
        standings[SCORE] = _standings([_score(axis, group, name, scores[name]) for name in techniques])
    marked = dict(zip(techniques, front, strict=True)) if front_of else dict.fromkeys(techniques)
    return GroupRanking(axis, group, techniques, tuple(standings), standings, front_of, marked)


def _standings(column: list[Result]) -> dict[str, TechniqueStanding]:
    ranked = rank_column(column, column[0].direction)
    return {
        line.technique: TechniqueStanding(
            replace(line, value=result.value), result.direction, result.unit, result.ci_low, result.ci_high, result.missing_reason
        )
        for line, result in zip(ranked, column, strict=True)
    }  # fmt: skip


def _ranked_value(standing: TechniqueStanding) -> float | None:
    return None if standing.line.rank is None else standing.line.value


def _score(axis: str, group: str, technique: str, score: float | None) -> Result:
    reason = "a metric that counts is missing" if score is None else None
    return Result(axis, group, technique, technique, "", "", SCORE, score, "", "higher", missing_reason=reason)


def _mean_over_models(techniques: Sequence[str], lines: list[Line]) -> list[Result]:
    """One result per technique; lines of one axis, group and metric."""
    by_technique: dict[str, dict[str, Line]] = {name: {} for name in techniques}
    for line in lines:
        by_technique[line.technique][line.model] = line
    models = list(dict.fromkeys(line.model for line in lines if line.value is not None))
    return [_mean(name, lines[0], models, own) for name, own in by_technique.items()]


def _mean(technique: str, column: Line, models: list[str], own: dict[str, Line]) -> Result:
    place = (column.axis, column.group, technique, technique, "", "", column.metric)
    found = [own[model] for model in models if model in own]
    values = [line.value for line in found if line.value is not None]
    if not models or len(values) < len(models):
        reason = _reason(models, own)
        return Result(*place, None, column.unit, column.direction, missing_reason=reason)
    if len(found) == 1:
        only = found[0]
        return Result(
            *place, only.value, only.unit, column.direction, only.source, None, only.ci_low, only.ci_high, only.n
        )
    value = fmean(values)
    source = "modelled" if any(line.source == "modelled" for line in found) else found[0].source
    if all(line.ci_low is None for line in found):
        return Result(*place, value, column.unit, column.direction, source)
    bounds = [
        (line.value, *Estimate(line.value, line.ci_low, line.ci_high).bounds())
        for line in found
        if line.value is not None
    ]
    below = sqrt(sum((own - low) ** 2 for own, low, _ in bounds)) / len(found)
    above = sqrt(sum((high - own) ** 2 for own, _, high in bounds)) / len(found)
    counts = [line.n for line in found]
    return Result(
        *place, value, column.unit, column.direction, source, f"mean over {len(found)} models",
        value - below, value + above, min(count for count in counts if count is not None) if None not in counts else None,
    )  # fmt: skip


def _reason(models: list[str], own: dict[str, Line]) -> str:
    stated = [line.reason for line in own.values() if line.reason]
    if stated:
        return stated[0]
    lacking = [model for model in models if model and (model not in own or own[model].value is None)]
    return f"no value for {', '.join(lacking)}, which others of the group have" if lacking else "no value"
