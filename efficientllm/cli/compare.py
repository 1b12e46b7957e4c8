"""Commands that compare results: whole result sets, and one metric of the experiments of a sweep."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from efficientllm.cli.commands import add_command, add_format, strict_json, text_table

if TYPE_CHECKING:
    from efficientllm.ranking.compare import Compared, Comparison
    from efficientllm.registry import Axis

_MARKS = {"better": "high", "worse": "low", "same": "none", "?": "none"}


def add_commands(commands: Any) -> None:
    """Declares `compare` and `sweep`."""
    comparing = add_command(
        commands, "compare", _compare, "compare result sets, row by row and metric by metric",
        "Each set is compared with the first; a difference counts where the 95 % intervals do not overlap.",
    )  # fmt: skip
    comparing.add_argument(
        "first", metavar="A", help="a folder that holds results.csv, that file itself, an experiment or a commit"
    )
    comparing.add_argument("others", metavar="B", nargs="+", help="result sets to compare with A")
    comparing.add_argument("--axis", help="only this axis: pretrain, tune or quantize")
    comparing.add_argument("--metric", action="append", help="only this metric; may be repeated")
    add_format(comparing)
    sweep = add_command(
        commands, "sweep", _sweep, "list the experiments of `dvc exp` by one metric of one cell, best first",
        "Each is listed with the parameters in which the experiments differ.",
    )  # fmt: skip
    sweep.add_argument("--axis", required=True, help="pretrain, tune or quantize")
    sweep.add_argument("--cell", required=True, help="a cell, for example lora-small")
    sweep.add_argument("--metric", required=True, help="a metric, for example task_loss or just loss")


def _compare(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm.ranking.compare import compare_sets, read_result_set, select
    from efficientllm.ranking.outputs import comparison_content, comparison_csv

    names = [arguments.first, *arguments.others]
    comparisons = select(
        compare_sets([read_result_set(name) for name in names]), arguments.axis, arguments.metric or ()
    )
    if arguments.format == "csv":
        yield comparison_csv(names, comparisons).removesuffix("\n")
    elif arguments.format == "json":
        yield strict_json(comparison_content(names, comparisons))
    elif arguments.format == "html":
        yield _html(names, comparisons)
    else:
        yield from _text(names, comparisons)


def _groups(comparisons: Sequence["Comparison"]) -> dict[str, list["Comparison"]]:
    from efficientllm.ranking.tidy import group_title

    groups: dict[str, list[Comparison]] = {}
    for row in comparisons:
        groups.setdefault(group_title(row.axis, row.group), []).append(row)
    return groups


def _mark(entry: "Compared") -> str:
    if entry.beyond is None:
        return "?"
    return "same" if not entry.beyond else "better" if entry.better else "worse"


def _compared(comparisons: Sequence["Comparison"]) -> list["Compared"]:
    return [entry for row in comparisons for entry in row.values if entry.difference is not None]


def _text(names: Sequence[str], comparisons: Sequence["Comparison"]) -> Iterator[str]:
    heads = ["technique", "metric", "unit", names[0]]
    for name in names[1:]:
        heads += [name, "ratio", ""]
    for group, rows in _groups(comparisons).items():
        yield group
        table = []
        for row in rows:
            cells = [row.technique, f"{row.metric} ({row.direction})", row.unit, _value(row.values[0])]
            for entry in row.values[1:]:
                ratio = "" if entry.ratio is None else f"{entry.ratio:.3g}x"
                cells += [_value(entry), ratio, "" if entry.difference is None else _mark(entry)]
            table.append(cells)
        yield from (f"  {line}" for line in text_table(heads, table, left=3))
        for row in rows:
            for name, entry in zip(names, row.values, strict=True):
                if entry.value is None:
                    yield f"  {name}: {row.technique}, {row.metric}: {entry.reason or 'no value'}"
        yield ""
    compared = _compared(comparisons)
    yield (
        f"{sum(entry.beyond is True for entry in compared)} of {len(compared)} values differ from {names[0]} by more than their "
        "95 % intervals (better, worse); same: the intervals overlap; ?: no interval, so nothing can be said"
    )


def _value(entry: "Compared") -> str:
    from efficientllm.ranking.rank import Estimate

    return "-" if entry.value is None else Estimate(entry.value, entry.ci_low, entry.ci_high).text()


def _html(names: Sequence[str], comparisons: Sequence["Comparison"]) -> str:
    from markupsafe import Markup

    from efficientllm.pages.page import render_page

    def chip(entry: "Compared") -> Markup:
        mark = _mark(entry)
        return Markup('<span class="chip {}">{}</span>').format(_MARKS[mark], mark)

    compared = _compared(comparisons)
    return render_page(
        "comparison", names=names, groups=list(_groups(comparisons).items()), mark=chip, total=len(compared),
        beyond=sum(entry.beyond is True for entry in compared),
    ).removesuffix("\n")  # fmt: skip


def _sweep(arguments: argparse.Namespace) -> list[str]:
    from efficientllm.ranking.experiments import compare_experiments, describe

    axis, metric = _axis_of(arguments.axis), _metric_of(arguments.metric)
    return describe(compare_experiments(axis, arguments.cell, metric), metric)


def _axis_of(name: str) -> "Axis":
    from efficientllm import registry
    from efficientllm.errors import unknown_name

    for axis in registry.AXES:
        if axis == name:
            return axis
    raise unknown_name("axis", name, registry.AXES)


def _metric_of(name: str) -> str:
    """The key of a metric that may be given by its symbol, such as loss or EPT, as a table's heads show it."""
    from efficientllm import metrics

    by_symbol = {entry.symbol.lower(): entry.key for entry in metrics.METRICS}
    return by_symbol.get(name.lower(), name)
