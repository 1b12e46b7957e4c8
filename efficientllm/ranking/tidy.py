"""Reads a tidy table: one line per technique, metric and model, in a CSV file that anybody may have written."""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from efficientllm.errors import DataError, abridged, did_you_mean, shown
from efficientllm.metrics import Direction
from efficientllm.ranking.directions import known_direction
from efficientllm.records import Source

_Name = TypeVar("_Name", bound=str)

REQUIRED = ("group", "technique", "metric", "value")
OPTIONAL = ("axis", "model", "direction", "unit", "ci_low", "ci_high", "n")
# what the pipeline's results.csv has beyond these
_FURTHER = ("source", "missing_reason")
_NAMES = ("axis", "group", "technique", "metric", "model")
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_SOURCES: tuple[Source, ...] = get_args(Source)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LARGEST = 1e150  # squares and sums of what is allowed stay finite
_MOST_BYTES = 32 << 20
_ROUNDING = 1e-9
"""By what share of itself a value may lie outside its interval: tables are rounded."""


@dataclass(frozen=True)
class Line:
    """One checked line. A missing value has the reason that the table gives, if any."""

    number: int
    axis: str
    group: str
    technique: str
    metric: str
    model: str
    direction: Direction
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unit: str = ""
    source: Source | None = None
    reason: str | None = None


def group_title(axis: str, group: str) -> str:
    """Names a group with its axis, which a table need not have."""
    return f"{axis}: {group}" if axis else group


def read_tidy(path: Path) -> list[Line]:
    """Reads and checks a CSV file; see `parse_tidy`.

    Raises:
        DataError: The file does not exist, cannot be read, is too large, or has a fault.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)  # of a pipe or device too, whose size is not known before
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} has more than {_MOST_BYTES >> 20} MiB: rank a part of it")
    return parse_tidy(content, str(path))


def parse_tidy(content: bytes, name: str) -> list[Line]:
    """Checks the content of a CSV file: header, names, numbers, intervals, directions, units, and that no line is twice.

    Args:
        content: Comma-separated UTF-8 text with a header, with or without a byte order mark.
        name: What to call it in an error.

    Returns:
        Its lines. An empty value is a missing one.

    Raises:
        DataError: There is a fault; the message names line and column, and the remedy.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start}): save it as CSV in UTF-8") from error
    rows = _rows(text, name)
    header = [cell.strip().lower() for _, row in rows[:1] for cell in row]
    _check_header(header, name)
    if len(rows) == 1:
        raise DataError(f"{name} has a header and no line below it")
    cells = [(number, _as_dict(header, row, f"{name}, line {number}")) for number, row in rows[1:]]
    directions = _directions(cells, name)
    _check_units(cells, name)
    lines: dict[tuple[str, ...], Line] = {}
    for number, cell in cells:
        where = f"{name}, line {number}"
        line = _line(number, cell, directions[cell["axis"], cell["metric"]], where)
        earlier = lines.setdefault(tuple(cell[key] for key in _NAMES), line)
        if earlier is not line:
            names = ", ".join(abridged(text) for text in (line.group, line.technique, line.metric))
            raise DataError(
                f"{where} repeats line {earlier.number} ({names}): keep one of them, or tell them apart by a column 'model'"
            )
    return list(lines.values())


def _rows(text: str, name: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of the line on which it starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {start}: not valid CSV ({error})") from error
    if not rows:
        raise DataError(f"{name} is empty: it needs the columns {', '.join(REQUIRED)}")
    return rows


def _check_header(header: list[str], name: str) -> None:
    for column in header:
        if column and header.count(column) > 1:
            raise DataError(f"{name}: the column {shown(column)} is there twice")
    for column in REQUIRED:
        if column not in header:
            separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
            hint = f"; separate the columns by commas, not by {separator!r}" if separator else ""
            found = abridged(", ".join(map(repr, header)))
            raise DataError(f"{name} lacks the column {column!r}: it has {found}{hint}")
    absent = [column for column in OPTIONAL if column not in header]
    for column in header:
        # a misspelt optional column would otherwise be ignored without a word
        if column not in REQUIRED + OPTIONAL + _FURTHER and (near := did_you_mean(column, absent, cutoff=0.8)):
            raise DataError(f"{name}: unknown column {shown(column)}; {near.strip()}")


def _as_dict(header: list[str], row: list[str], where: str) -> dict[str, str]:
    if len(row) != len(header):
        raise DataError(f"{where} has {len(row)} cells, the header has {len(header)}")
    cells = dict.fromkeys(REQUIRED + OPTIONAL + _FURTHER, "") | {
        column: cell.strip() for column, cell in zip(header, row, strict=True)
    }
    for column in _NAMES:
        if column in REQUIRED and not cells[column]:
            raise DataError(f"{where}, column {column!r} is empty")
        if _CONTROL.search(cells[column]):
            raise DataError(f"{where}, column {column!r} holds a control character: {shown(cells[column])}")
    return cells


def _directions(cells: list[tuple[int, dict[str, str]]], name: str) -> dict[tuple[str, str], Direction]:
    """The direction of each axis' metrics: what the table says of them, else of the metric elsewhere, else what its name says."""
    stated: dict[tuple[str, str], tuple[int, Direction]] = {}
    for number, cell in cells:
        if not cell["direction"]:
            continue
        direction = _choice(cell, "direction", _DIRECTIONS, f"{name}, line {number}")
        first, earlier = stated.setdefault((cell["axis"], cell["metric"]), (number, direction))
        if earlier != direction:
            raise DataError(
                f"{name}, line {number}, column 'direction': {direction} is better for {shown(cell['metric'])}, "
                f"but line {first} says {earlier}"
            )
    elsewhere: dict[str, dict[Direction, int]] = defaultdict(dict)
    for (_, metric), (number, direction) in stated.items():
        elsewhere[metric].setdefault(direction, number)
    found: dict[tuple[str, str], Direction] = {key: direction for key, (_, direction) in stated.items()}
    for number, cell in cells:
        key = (cell["axis"], cell["metric"])
        if key in found:
            continue
        said = elsewhere[cell["metric"]]
        if len(said) > 1:
            raise DataError(
                f"{name}, line {number}, column 'direction': the axis {shown(cell['axis'])} has none for "
                f"{shown(cell['metric'])}, and other axes differ (lower on line {said['lower']}, higher on line "
                f"{said['higher']}): add it here"
            )
        known = next(iter(said), None) or known_direction(cell["metric"])
        if known is None:
            remedy = "name it perplexity, loss or accuracy, or " if cell["metric"].lower() == "performance" else ""
            raise DataError(
                f"{name}, line {number}, column 'metric': it is not known whether lower or higher is better for "
                f"{shown(cell['metric'])}; {remedy}add a column 'direction' with lower or higher"
            )
        found[key] = known
    return found


def _check_units(cells: list[tuple[int, dict[str, str]]], name: str) -> None:
    """Checks that the values of a metric, which are ranked by their numbers alone, are in one unit within an axis."""
    stated: dict[tuple[str, str], tuple[int, str]] = {}
    for number, cell in cells:
        if not cell["value"]:
            continue
        first, unit = stated.setdefault((cell["axis"], cell["metric"]), (number, cell["unit"]))
        if cell["unit"] != unit:
            raise DataError(
                f"{name}, line {number}, column 'unit': {shown(cell['metric'])} has {shown(cell['unit'])} here, but "
                f"{shown(unit)} on line {first}: give all its values in one unit"
            )


def _choice(cell: dict[str, str], column: str, choices: Sequence[_Name], where: str) -> _Name:
    text = cell[column].lower()
    for choice in choices:
        if text == choice:
            return choice
    raise DataError(
        f"{where}, column {column!r}: unknown {shown(text)}; {did_you_mean(text, choices)}known: {', '.join(choices)}"
    )


def _line(number: int, cell: dict[str, str], direction: Direction, where: str) -> Line:
    value, low, high, n = (_number(cell, column, where) for column in ("value", "ci_low", "ci_high", "n"))
    if (low is None) != (high is None):
        raise DataError(f"{where}: ci_low and ci_high come together, or not at all")
    if low is not None and high is not None:
        ends = f"ci_low {abridged(cell['ci_low'])}", f"ci_high {abridged(cell['ci_high'])}"
        if low > high:
            raise DataError(f"{where}: {ends[0]} is above {ends[1]}: swap them")
        if value is not None and not low - _ROUNDING * abs(low) <= value <= high + _ROUNDING * abs(high):
            raise DataError(
                f"{where}, column 'value': {abridged(cell['value'])} is outside its interval, {ends[0]} to {ends[1]}: correct "
                "the line, or leave its interval empty"
            )
    if n is not None and (n < 1 or n != int(n)):
        raise DataError(f"{where}, column 'n': {abridged(cell['n'])} is not a count of repeats: 1, 2, 3, ...")
    source = _choice(cell, "source", _SOURCES, where) if cell["source"] else None
    return Line(
        number, cell["axis"], cell["group"], cell["technique"], cell["metric"], cell["model"], direction, value, low, high,
        None if n is None else int(n), cell["unit"], source, cell["missing_reason"] or None,
    )  # fmt: skip


def _number(cell: dict[str, str], column: str, where: str) -> float | None:
    text = cell[column]
    if not text:
        return None
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise DataError(
            f"{where}, column {column!r}: {abridged(text)} is no figure to rank; "
            "leave the cell empty where a value is missing"
        )
    if not _NUMBER.fullmatch(text):
        raise DataError(
            f"{where}, column {column!r}: {shown(text)} is not a number such as 1234.5 or 1.2e-3; "
            "leave the cell empty where a value is missing"
        )
    value = float(text)
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise DataError(f"{where}, column {column!r}: {abridged(text)} is beyond {_LARGEST:g}: take another unit")
    return value
