"""Writes the tables of docs/metrics.md from the registries of metrics and techniques, between their markers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from efficientllm import metrics, registry
from efficientllm.metrics import Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
_PLACES = (("ranked_on", "**ranked**"), ("shown_on", "shown"), ("derived_on", "derived"))


def written(page: str) -> str:
    """Returns the text of docs/metrics.md with its tables written anew."""
    for name, table in (("metrics", _metrics()), ("techniques", _techniques()), ("abbreviations", _abbreviations())):
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        head, rest = page.split(start)
        page = f"{head}{start}\n{table}\n{end}{rest.split(end)[1]}"
    return page


def _metrics() -> str:
    lines = [
        "| metric | unit | better | pretrain | tune | quantize | what it is |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in metrics.METRICS:
        places = [_place(entry, axis) for axis in registry.AXES]
        name = f"{entry.label} `{entry.key}`"
        lines.append(f"| {name} | {entry.unit} | {entry.direction} | {' | '.join(places)} | {entry.description} |")
    return "\n".join(lines)


def _techniques() -> str:
    lines = ["| technique | compared in | what it is | source |", "|---|---|---|---|"]
    cells = [row.cell for row in registry.ARCHITECTURE_ROWS]
    every = registry.rows(cells, registry.method_keys(), registry.precision_keys(), registry.SIZES)
    lines += [
        f"| {row.label} | {row.compared_in} | {row.meaning} | {row.reference} |" for row in registry.techniques(every)
    ]
    return "\n".join(lines)


def _place(entry: Metric, axis: str) -> str:
    place = next((word for field, word in _PLACES if axis in getattr(entry, field)), "")
    return f"{place}, performance" if metrics.PERFORMANCE[axis] == entry.key else place


def _abbreviations() -> str:
    lines = ["| abbreviation | stands for |", "|---|---|"]
    lines += [f"| {entry.symbol} | {entry.label.lower()} |" for entry in sorted(metrics.METRICS, key=_by_symbol)]
    return "\n".join(lines)


def _by_symbol(entry: Metric) -> str:
    return entry.symbol.lower()


def main() -> int:
    """Writes docs/metrics.md."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
