"""The table that a benchmark leaves: its rows, how one is compared with another and shown, and the CSV file."""

import csv
import io
from pathlib import Path
from typing import Any

from efficientllm.files import write_text

Row = dict[str, Any]


def failure(error: Exception) -> str:
    """What a row that failed has in place of figures: the kind of error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def ratio(row: Row, rows: list[Row], figure: str, /, **of: Any) -> float | None:
    """A row's figure over that of the first row which has succeeded and whose entries are `of`.

    Returns:
        The ratio; None where there is no such row, or one of the two lacks the figure.
    """
    others = (other for other in rows if "failure" not in other and of.items() <= other.items())
    own, other = row.get(figure), next(others, {}).get(figure)
    return None if own is None or other is None else float(own / other)


def shown(value: float | None, form: str) -> str:
    """A figure in a format, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def write_table(path: Path, rows: list[Row]) -> None:
    """Writes the rows as CSV, columns in the order in which they first appear; a figure that a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[Row]:
    """Reads what `write_table` wrote: figures as numbers, empty ones left out; no rows where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: _value(text) for name, text in row.items() if text} for row in csv.DictReader(stream)]


def _value(text: str) -> Any:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
