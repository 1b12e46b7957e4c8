"""The experiments of `dvc exp`, compared by one metric of one cell: what a sweep has found."""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efficientllm import paths
from efficientllm.errors import ArtifactError, ParameterError, unknown_name
from efficientllm.metrics import metric
from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.results import RESULTS_FILE
from efficientllm.registry import Axis

_WORKSPACE = "workspace"
# DVC gives no state to a commit, nor to an experiment that ran without the queue
_FINISHED = (None, "Success")


@dataclass(frozen=True)
class Experiment:
    """What one experiment found for a cell.

    Args:
        name: Its name in `dvc exp show`; the branch, for the commit that experiments start from.
        estimate: The metric, None where it is missing.
        reason: Why it is missing.
        changed: The parameters in which the compared experiments differ, as this one had them.
    """

    name: str
    estimate: Estimate | None
    reason: str | None
    changed: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The experiments of the current commit.

    Args:
        experiments: Those that have finished, best first, those without a value last.
        left_out: How many have not, by their state: `queued`, `running` or `failed`.
    """

    experiments: list[Experiment]
    left_out: dict[str, int]


def compare_experiments(axis: Axis, cell: str, metric_key: str) -> Sweep:
    """Reads the experiments of the current commit that have finished.

    Args:
        axis: The axis.
        cell: A cell of that axis, for example `lora-small`.
        metric_key: Key of a metric.

    Raises:
        ParameterError: The metric is unknown, or no experiment has the cell.
        ArtifactError: There is no DVC repository, it may not be written to, or no experiment has finished.
    """
    import dvc.api
    from celery.exceptions import CeleryError  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException

    sign = -1 if metric(metric_key).direction == "higher" else 1
    try:
        listed = [entry for entry in dvc.api.exp_show() if entry["rev"] != _WORKSPACE]
    except DvcException as error:
        raise ArtifactError(
            f"the experiments cannot be listed ({error}): run this in a clone that has Git and DVC"
        ) from error
    except (CeleryError, OSError) as error:  # DVC opens its queue to list what waits there, and so has to write
        raise ArtifactError(
            f"the experiments cannot be listed, for DVC cannot write to .dvc/tmp here ({' '.join(str(error).split())}): make it "
            "writable, or run this in a clone of your own"
        ) from error
    # one that has not run still carries the lock file, and so the results, of the commit that it starts from
    shown = [entry for entry in listed if entry["State"] in _FINISHED]
    left_out = dict(Counter(entry["State"].lower() for entry in listed if entry["State"] not in _FINISHED))
    tables = {entry["Experiment"] or entry["rev"]: _table(entry["rev"], axis) for entry in shown}
    if not any(tables.values()):
        waiting = f" ({_counts(left_out)})" if left_out else ""
        raise ArtifactError(
            f"no experiment of this commit has results of the axis {axis!r}{waiting}: run `dvc exp run`, or `dvc queue "
            "start` where some are queued, first"
        )
    if not any(line["cell"] == cell for table in tables.values() for line in table):
        raise unknown_name(f"{axis} cell", cell, {line["cell"] for table in tables.values() for line in table})
    lines = {
        name: line
        for name, table in tables.items()
        for line in table
        if (line["cell"], line["metric"]) == (cell, metric_key)
    }
    if not lines:
        raise ParameterError(f"{metric_key} is not measured on the axis {axis!r}")
    revisions = {entry["Experiment"] or entry["rev"]: entry["rev"] for entry in shown}
    changed = _differences({name: _flat(dvc.api.params_show(rev=revisions[name])) for name in lines})
    found = [_experiment(name, line, changed[name]) for name, line in lines.items()]
    found.sort(
        key=lambda one: (one.estimate is None, 0.0 if one.estimate is None else sign * one.estimate.value, one.name)
    )
    return Sweep(found, left_out)


def describe(sweep: Sweep, metric_key: str) -> list[str]:
    """Returns lines for the terminal: a table, how many experiments it leaves out, which is best, and which are tied with it."""
    entry, experiments = metric(metric_key), sweep.experiments
    lines = [f"{entry.label}{f' ({entry.unit})' if entry.unit else ''}, {entry.direction} is better"]
    width = max(len(experiment.name) for experiment in experiments)
    for experiment in experiments:
        found = experiment.estimate
        shown = f"missing: {experiment.reason}" if found is None else found.text()
        changed = "  ".join(f"{name}={value}" for name, value in experiment.changed.items())
        lines.append(f"  {experiment.name:{width}s}  {shown:32s}  {changed}".rstrip())
    if sweep.left_out:
        lines.append(f"left out, without results of their own: {_counts(sweep.left_out)}")
    name, best = experiments[0].name, experiments[0].estimate
    if best is not None:
        tied = [other.name for other in experiments[1:] if other.estimate is not None and best.overlaps(other.estimate)]
        lines.append(f"best: {name}" + (f"; tied with it: {', '.join(tied)}" if tied else ""))
    return lines


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(left_out.items()))


def _table(revision: str, axis: Axis) -> list[dict[str, str]]:
    """An axis' lines of a revision's tidy results; none where it has not finished, or DVC's cache lacks them."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        with dvc.api.open(str(paths.RESULTS / RESULTS_FILE), rev=revision) as stream:
            return [line for line in csv.DictReader(stream) if line["axis"] == axis]
    except (DvcException, FileNotFoundError):
        return []


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as dotted names; those of a profile without the name of its file."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        name = prefix + key.partition(":")[2] if ":" in key else prefix + key
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _differences(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each experiment, the parameters that two of them have with different values.

    One that an experiment lacks, for it leaves a method or a size out, makes no difference to the others.
    """
    names = sorted({key for shown in parameters.values() for key in shown})
    differing = [
        name for name in names if len({str(shown[name]) for shown in parameters.values() if name in shown}) > 1
    ]
    return {
        experiment: {name: shown[name] for name in differing if name in shown}
        for experiment, shown in parameters.items()
    }


def _experiment(name: str, line: Mapping[str, str], changed: dict[str, Any]) -> Experiment:
    def number(column: str) -> float | None:
        return float(line[column]) if line[column] else None

    value = number("value")
    estimate = None if value is None else Estimate(value, number("ci_low"), number("ci_high"))
    return Experiment(name, estimate, line["missing_reason"] or None, changed)
