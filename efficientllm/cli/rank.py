"""The command that ranks any table."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllm.cli.commands import add_command, add_format, strict_json, terminal_width, text_table

if TYPE_CHECKING:
    from efficientllm.ranking.standings import GroupRanking, TechniqueStanding

_DETAILS = """FILE.csv has a line per technique and metric, with the columns group, technique, metric and value, and optionally axis,
model, direction (lower or higher is better), unit, ci_low, ci_high and n. An empty value is a missing one. Several models in a
group are averaged first. docs/results.md explains which metrics need no direction, docs/metrics.md what the figures mean."""

_INDENT = "  "


def add_commands(commands: Any) -> None:
    """Declares `rank`."""
    parser = add_command(commands, "rank", _rank, "normalize and rank the techniques of a CSV file", _DETAILS)
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="the tidy table")
    add_format(parser)
    parser.add_argument(
        "--weights", metavar="METRIC=NUMBER,...",
        help="add a score: the mean of the normalized values with these weights; a metric that is not named has the weight 1",
    )  # fmt: skip
    parser.add_argument("--pareto", metavar="METRIC,...", help="mark the Pareto front of these metrics (default: all)")


def _rank(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm.ranking.outputs import ranking_content, ranking_csv
    from efficientllm.ranking.score import parse_weights
    from efficientllm.ranking.standings import rank_table
    from efficientllm.ranking.tidy import read_tidy

    lines = read_tidy(arguments.file)
    metrics = list(dict.fromkeys(line.metric for line in lines))
    weights = None if arguments.weights is None else parse_weights(arguments.weights, metrics)
    pareto = None if arguments.pareto is None else [name.strip() for name in arguments.pareto.split(",")]
    rankings = rank_table(lines, weights, pareto)
    if arguments.format == "csv":
        yield ranking_csv(rankings).removesuffix("\n")
    elif arguments.format == "json":
        yield strict_json({"file": arguments.file.name, "weights": weights, "groups": ranking_content(rankings)})
    elif arguments.format == "html":
        from efficientllm.pages.page import render_page

        shown = None if weights is None else [(name, weight) for name, weight in weights.items() if weight != 1]
        yield render_page("ranking", name=arguments.file.name, rankings=rankings, weights=shown).removesuffix("\n")
    else:
        yield from _text(rankings)


def _text(rankings: Sequence["GroupRanking"]) -> Iterator[str]:
    for ranking in rankings:
        yield ranking.title
        columns = [ranking.standings[metric] for metric in ranking.metrics]
        firsts = [column[ranking.techniques[0]] for column in columns]
        heads = [
            f"{metric} ({', '.join(part for part in (first.unit, first.direction) if part)})"
            for metric, first in zip(ranking.metrics, firsts, strict=True)
        ]
        marks = {True: "yes", False: "no", None: "-"}
        rows = [
            [name, *(_cell(column[name]) for column in columns), marks[ranking.front[name]]]
            for name in ranking.techniques
        ]
        yield from (f"{_INDENT}{line}" for line in _narrower(["technique", *heads, "Pareto front"], rows))
        for metric, reason, names in ranking.reasons():
            yield f"{_INDENT}{', '.join(names)}: {metric}: {reason}"
        yield ""
    yield "each cell: value, rank within the group (= tied: 95 % intervals overlap), and how often the rank holds in draws"
    yield "from the intervals, where there are any"


def _narrower(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table with a line per technique, or one per metric where that makes shorter lines: a run has some thirty metrics."""
    (_, *names), *turned = (list(column) for column in zip(heads, *rows, strict=True))
    layouts = [(heads, rows), (["metric", *names], turned)]
    shortest = min(layouts, key=lambda layout: len(text_table(*layout)[0]))
    width = terminal_width()
    return text_table(*shortest, width=None if width is None else width - len(_INDENT))


def _cell(standing: "TechniqueStanding") -> str:
    from efficientllm.reporting.text import percent

    line = standing.line
    if line.value is None:
        return "-"
    rank = "not ranked" if line.rank is None else f"{line.rank}{'=' if line.tied else ''}"
    holds = "" if (share := percent(line.stability)) is None else f" {share.replace(' ', '')}"
    return f"{line.value:.4g}  {rank}{holds}"
