"""How certain the ranks are, and where they differ from the paper's."""

from collections.abc import Iterator
from dataclasses import dataclass

from efficientllm import metrics, registry
from efficientllm.ranking.paper import Agreement, paper_agreement, paper_ranks
from efficientllm.ranking.rank import ranks
from efficientllm.ranking.results import Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import Group, groups_of
from efficientllm.reporting.tables import tied_with
from efficientllm.reporting.text import MINUS, Scale, listing, number, percent

_FIRM = 0.95
LOOSE = 0.5
"""The share of draws below which a rank is called loose, and is underlined."""


@dataclass(frozen=True)
class RankStability:
    """A rank, how often it holds, and which rows its interval overlaps."""

    rank: int | None
    share: str | None
    loose: bool
    tied_with: str


@dataclass(frozen=True)
class StabilityTable:
    """The standings of a group, row by row."""

    id: str
    group: Group
    heads: list[str]
    rows: list[tuple[str, list[RankStability]]]


def stability_tables(evidence: Evidence) -> Iterator[StabilityTable]:
    """Lists, group by group, how often each rank holds."""
    for group in groups_of(evidence):
        entries = metrics.ranked_metrics(group.axis)
        rows = []
        for row in group.rows:
            lines = [group.standings[row.technique, entry.key] for entry in entries]
            standings = [
                RankStability(
                    line.rank, percent(line.stability), line.stability is not None and line.stability < LOOSE,
                    tied_with(line, group),
                )
                for line in lines
            ]  # fmt: skip
            rows.append((row.label, standings))
        yield StabilityTable(group.id("stability"), group, [entry.symbol for entry in entries], rows)


def stability_finding(evidence: Evidence) -> str:
    """Says how many of the ranks hold."""
    shares = [line.stability for line in evidence.ranking if line.stability is not None]
    if not shares:
        return "No figure of this run has an interval, so nothing can be said about the certainty of its ranks."
    firm, loose = sum(share >= _FIRM for share in shares), sum(share < LOOSE for share in shares)
    return (
        f"Of {len(shares)} ranks that rest on intervals, {firm} hold in at least {100 * _FIRM:g} % of the draws and {loose} in "
        f"less than {100 * LOOSE:g} %."
    )


@dataclass(frozen=True)
class PaperColumn:
    """The paper's ranks and ours in one metric; `tau` is a text, or None with the reason in `remark`."""

    symbol: str
    tau: str | None
    ranks: list[tuple[int | None, int | None]]


@dataclass(frozen=True)
class PaperTable:
    """A group of the paper's table and ours, with the pairs that they order differently."""

    id: str
    group: Group
    names: list[str]
    columns: list[PaperColumn]
    remarks: list[str]


def paper_tables(evidence: Evidence) -> Iterator[PaperTable]:
    """Compares the paper's ranks with this run's, group by group."""
    found: dict[tuple[str, str], list[Agreement]] = {}
    for agreement in paper_agreement(evidence.ranking):
        found.setdefault((agreement.axis, agreement.group), []).append(agreement)
    for group in groups_of(evidence):
        agreements = found.get((group.axis, group.key), [])
        published = paper_ranks()
        ranked = [
            row for row in group.rows
            if any(row.technique in published[group.axis, group.key, agreement.metric] for agreement in agreements)
        ]  # fmt: skip
        if not ranked:
            continue
        own = {agreement.metric: _ranks_among(ranked, group, agreement.metric) for agreement in agreements}
        columns = [
            PaperColumn(
                metrics.metric(agreement.metric).symbol,
                None if agreement.tau is None else f"{agreement.tau:.2f}".replace("-", MINUS),
                [
                    (published[group.axis, group.key, agreement.metric].get(row.technique),
                     own[agreement.metric].get(row.technique))
                    for row in ranked
                ],
            )
            for agreement in agreements
        ]  # fmt: skip
        yield PaperTable(
            group.id("paper"), group, [row.label for row in ranked], columns,
            [remark for agreement in agreements for remark in _remarks(group, agreement)],
        )  # fmt: skip


def _ranks_among(rows: list[registry.Row], group: Group, metric: str) -> dict[str, int | None]:
    """This run's ranks of some rows of a group among themselves, as the paper's are among its rows."""
    names = [row.technique for row in rows]
    return dict(zip(names, ranks([group.standings[name, metric].rank for name in names], "lower"), strict=True))


def _remarks(group: Group, agreement: Agreement) -> list[str]:
    entry = metrics.metric(agreement.metric)
    if agreement.tau is None:
        return [f"{entry.label}: {agreement.reason}."]
    pairs = len(agreement.techniques) * (len(agreement.techniques) - 1) // 2
    turned = agreement.disagreements
    others = pairs - len(turned)
    count = (
        f"{agreement.tied} of {others} pair{'s' if others > 1 else ''} {'is' if agreement.tied == 1 else 'are'} tied"
    )
    if not turned:
        return [f"{entry.label}: the same order{f'; {count}' if agreement.tied else ''}."] if agreement.tau == 1 else []
    all_tied = agreement.tied == others
    unsure = "" if not agreement.tied else " All others are tied." if all_tied else f" Of the rest, {count}."
    clear = [pair for pair in turned if not pair.tied]
    text = f"{entry.label}: {len(turned)} of {pairs} pairs {'is' if len(turned) == 1 else 'are'} in the opposite order"
    if not clear:
        return [f"{text}, {'tied here' if len(turned) == 1 else 'all tied here'}.{unsure}"]
    scale = group.scale(entry.key)
    described = []
    for pair in clear:
        ours, theirs = (group.results[technique, entry.key] for technique in (pair.run_prefers, pair.paper_prefers))
        described.append("{} before {}".format(*_told_apart(ours, theirs, scale)))
    known = any(result.ci_low is not None for result in group.column(entry.key))
    tied = len(turned) - len(clear)
    unit = f", in {scale.unit}" if scale.unit else ""
    rest = f"; the other {f'{tied} are' if tied > 1 else 'is'} tied here" if tied else ""
    return [
        f"{text}. {'Beyond the intervals' if known else 'Without intervals to judge by'}{unit}: {listing(described)}{rest}.{unsure}"
    ]


def _told_apart(one: Result, other: Result, scale: Scale) -> list[str]:
    """Names two rows with their values, in as many digits as show the difference."""
    values = [result.value * scale.factor for result in (one, other) if result.value is not None]
    digits = next((digits for digits in range(3, 8) if len({number(value, digits) for value in values}) > 1), 3)
    return [f"{result.label} ({number(value, digits)})" for result, value in zip((one, other), values, strict=True)]
