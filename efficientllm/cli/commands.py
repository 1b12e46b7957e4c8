"""What the commands share: how one is declared, and output for terminals and other programs."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Run = Callable[[argparse.Namespace], Iterable[str]]
FORMATS = ("table", "csv", "json", "html")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def add_command(commands: Any, name: str, run: Run, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Declares a command.

    Args:
        commands: The parsers of all commands.
        name: Its name.
        run: Does the work and yields the lines to print.
        summary: One line for the list of commands.
        details: More, for its own help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}".strip(),
    )
    parser.set_defaults(run=run)
    return parser


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declares `--format`."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="what to print (default: %(default)s)")


def strict_json(content: Any) -> str:
    """Renders JSON without NaN, in the order in which it was built."""
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, *, width: int | None = None
) -> list[str]:
    """Lays rows out in columns, for a terminal.

    Args:
        header: The columns' heads.
        rows: Cells; what would control the terminal is replaced.
        left: How many columns are text and so begin at the left.
        width: Characters of a line. Columns that do not fit follow in further tables below, each behind the columns of text.
    """
    table = [[_CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    names = list(range(left))
    parts: list[list[int]] = [[]]
    for column in range(left, len(widths)):
        taken = sum(widths[place] + 2 for place in (*names, *parts[-1], column)) - 2
        if width is not None and taken > width and parts[-1]:
            parts.append([])
        parts[-1].append(column)
    lines = list[str]()
    for number, part in enumerate(parts):
        cells = [
            [
                *(row[place].ljust(widths[place]) for place in names),
                *(row[place].rjust(widths[place]) for place in part),
            ]
            for row in table
        ]
        lines += [""] * (number > 0) + ["  ".join(line).rstrip() for line in cells]
    return lines


def terminal_width() -> int | None:
    """Characters of a line of the terminal that is written to; None for a file or a pipe, where lines may have any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
