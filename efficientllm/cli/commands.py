"""What the commands share: how one is declared, and output for terminals and other programs."""

import argparse
import json
import re
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


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lays rows out in columns, for a terminal.

    Args:
        header: The columns' heads.
        rows: Cells; what would control the terminal is replaced.
        left: How many columns are text and so begin at the left.
    """
    table = [[_CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if position < left else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
