"""Result sets side by side: two machines, two revisions, two experiments, row by row and metric by metric."""

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientllm import paths
from efficientllm.errors import DataError, ParameterError, abridged, shown, unknown_name
from efficientllm.files import check_directory
from efficientllm.metrics import Direction
from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.results import RESULTS_FILE
from efficientllm.ranking.tidy import Line, parse_tidy, read_tidy

Key = tuple[str, str, str, str]
"""Axis, group, technique and metric."""


@dataclass(frozen=True)
class ResultSet:
    """The values of one run.

    Args:
        name: What it is called in the comparison.
        lines: Its values.
    """

    name: str
    lines: dict[Key, Line]


@dataclass(frozen=True)
class Compared:
    """One set's value of a row and metric, and how it differs from that of the first set.

    Args:
        value: The value; None where the set has none.
        ci_low: Lower end of its 95 % interval, where there is one.
        ci_high: Upper end.
        source: Whether it was measured or modelled, where the set says so.
        reason: Why there is no value.
        difference: Value less the first set's.
        ratio: Value over the first set's; None where that is zero or of the other sign.
        beyond: Whether the two differ by more than the intervals allow: they do not overlap. None where neither has an
            interval, so that nothing can be said, or a value is missing; and for the first set.
        better: Whether the difference, of whatever size, is for the better; None where the two are equal or one is missing.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    source: str | None = None
    reason: str | None = None
    difference: float | None = None
    ratio: float | None = None
    beyond: bool | None = None
    better: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """A row and metric in all sets; the first of `values` is what the others are compared with."""

    axis: str
    group: str
    technique: str
    metric: str
    unit: str
    direction: Direction
    values: tuple[Compared, ...]


def read_result_set(reference: str, root: Path = Path()) -> ResultSet:
    """Reads a result set from wherever its name leads.

    Args:
        reference: A tidy CSV file such as results.csv; a folder that holds one, such as a published set, or that holds
            results/results.csv, such as another clone; or else the name of an experiment of `dvc exp`, a branch, tag or
            commit, whose results DVC has.
        root: The repository whose experiments and commits are meant.

    Raises:
        ParameterError: It leads nowhere.
        DataError: The table has a fault, or holds several models.
        ArtifactError: The table, or a file beside it, does not fit the checksums of its folder, as a published set has them.
    """
    path = Path(reference)
    candidates = [path] if path.is_file() else [path / RESULTS_FILE, path / paths.RESULTS / RESULTS_FILE]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and path.exists():
        raise ParameterError(f"{path} holds no {RESULTS_FILE}, nor {paths.RESULTS / RESULTS_FILE}")
    if found is not None:
        check_directory(found.parent, f"restore {found.parent}, for example by `git checkout`, or publish it again")
    lines = read_tidy(found) if found else parse_tidy(_revision(reference, root), f"{RESULTS_FILE} of {reference}")
    keyed = {(line.axis, line.group, line.technique, line.metric): line for line in lines}
    if len(keyed) < len(lines):
        raise DataError(f"{reference} has several models per technique: compare tables of one model each")
    return ResultSet(reference, keyed)


def _revision(name: str, root: Path) -> bytes:
    """Reads the results of an experiment or commit out of Git's and DVC's storage."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    # DVC takes whatever Git finds for a commit, and fails on a file or folder of one
    kind = subprocess.run(["git", "cat-file", "-t", name], cwd=root, capture_output=True, text=True, check=False).stdout
    if kind.strip() in ("blob", "tree"):
        raise ParameterError(
            f"{name!r} is a file or folder within a commit: name a commit as HEAD, main, v1.0 or 1a2b3c4, or an experiment"
        )
    target = str(paths.RESULTS / RESULTS_FILE)
    try:
        with dvc.api.open(target, repo=str(root), rev=name, mode="rb") as stream:
            return bytes(stream.read())
    except SCMError as error:
        raise ParameterError(
            f"{name!r} is no file or folder, and no experiment or commit either: `dvc exp show` lists the experiments"
        ) from error
    except (DvcException, OSError) as error:
        raise ParameterError(
            f"{name!r} has no {target} that this clone holds: run it, or `dvc pull` its results"
        ) from error


def compare_sets(sets: Sequence[ResultSet]) -> list[Comparison]:
    """Compares every row and metric that any of the sets has.

    Args:
        sets: Two or more result sets; the others are compared with the first.

    Returns:
        The rows and metrics in the order of the first set, then what only later sets have.

    Raises:
        DataError: Two sets give a metric in different units, or disagree on which direction is better.
    """
    keys = dict.fromkeys(key for one in sets for key in one.lines)
    return [_compare(key, sets) for key in keys]


def select(comparisons: Sequence[Comparison], axis: str | None, metrics: Sequence[str]) -> list[Comparison]:
    """Keeps the rows of an axis and of some metrics.

    Args:
        comparisons: Output of `compare_sets`.
        axis: The axis; all where it is None.
        metrics: The metrics; all where there are none.

    Raises:
        ParameterError: No row has the axis, or one of the metrics.
    """
    for kind, wanted, known in (
        ("axis", [] if axis is None else [axis], {row.axis for row in comparisons}),
        ("metric", metrics, {row.metric for row in comparisons}),
    ):
        for name in wanted:
            if name not in known:
                raise unknown_name(kind, name, map(abridged, known))
    return [row for row in comparisons if axis in (None, row.axis) and (not metrics or row.metric in metrics)]


def _compare(key: Key, sets: Sequence[ResultSet]) -> Comparison:
    lines = [one.lines.get(key) for one in sets]
    known = [(one.name, line) for one, line in zip(sets, lines, strict=True) if line is not None]
    name, first = known[0]
    for other_name, other in known[1:]:
        for what, own, its in (("unit", first.unit, other.unit), ("direction", first.direction, other.direction)):
            if own != its:
                raise DataError(
                    f"{abridged(key[3])}: its {what} is {shown(own)} in {name}, but {shown(its)} in {other_name}"
                )
    base = lines[0]
    values = (_compared(base, None), *(_compared(line, base) for line in lines[1:]))
    return Comparison(*key, first.unit, first.direction, values)


def _compared(line: Line | None, base: Line | None) -> Compared:
    if line is None:
        return Compared(None, reason="not in this set")
    plain = (line.value, line.ci_low, line.ci_high, line.source, line.reason)
    if base is None or base.value is None or line.value is None:
        return Compared(*plain)
    own = Estimate(line.value, line.ci_low, line.ci_high)
    other = Estimate(base.value, base.ci_low, base.ci_high)
    difference = line.value - base.value
    return Compared(
        *plain,
        difference,
        _ratio(line.value, base.value),
        None if own.low is None and other.low is None else not own.overlaps(other),
        None if difference == 0 else (difference > 0) == (line.direction == "higher"),
    )


def _ratio(value: float, base: float) -> float | None:
    if value == 0 or base == 0 or (value > 0) != (base > 0):
        return None
    ratio = value / base
    return ratio if math.isfinite(ratio) else None
