"""The head of the report: the finding, the answers, the machine, and how much of it was measured."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from efficientllm import metrics, registry
from efficientllm.ranking.rank import Estimate, ranks, ties
from efficientllm.ranking.results import Result, reference_size
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.flags import doubts
from efficientllm.reporting.groups import axes_of
from efficientllm.reporting.text import column_scale, identifier, listing, scaled_estimate

_ENERGY = "energy_per_token"
_MEMORY = "accelerator_memory_utilization"
# quality as a share, from each axis' performance metric: perplexity, loss in nats, percent of right answers
_SHARE: dict[str, Callable[[float], float]] = {
    "pretrain": lambda perplexity: 1 / perplexity,
    "tune": lambda loss: math.exp(-loss),
    "quantize": lambda percent: percent / 100,
}
_VERBS = {
    "pretrain": "trains on the least energy per token",
    "tune": "tunes on the least",
    "quantize": "generates on the least",
}


@dataclass(frozen=True)
class Answer:
    """The best row of one question on one axis; `label` is None where nothing was measured.

    `label` names every row that the cell serves, `short` the first of them only; `of` is the number of cells compared.
    """

    question: str
    symbol: str
    label: str | None = None
    row_id: str | None = None
    value: str | None = None
    unit: str | None = None
    interval: str | None = None
    modelled: bool = False
    doubtful: bool = False
    noisy: bool = False
    tied_with: str = ""
    short: str = ""
    tied_with_short: str = ""
    of: int = 0


@dataclass(frozen=True)
class Answers:
    """The answers of one axis: a card; `absent` names the rows whose cells failed, which might have been the answer."""

    axis: str
    label: str
    scope: str
    answers: list[Answer]
    absent: list[str]


def answers(evidence: Evidence) -> list[Answers]:
    """Finds the best row of each axis in energy per token, speed, memory, quality per joule and quality.

    Only cells of the reference size are compared, so that a smaller model is no answer to a question about techniques.
    """
    cards = []
    for axis in axes_of(evidence.rows):
        size = reference_size(evidence.results, axis)
        chosen = [result for result in evidence.results if result.axis == axis and result.size == size]
        questions = (
            ("Lowest energy per token", _ENERGY), ("Fastest", metrics.THROUGHPUT[axis]), ("Smallest memory", _MEMORY),
            ("Best quality", metrics.PERFORMANCE[axis]),
        )  # fmt: skip
        found = [
            _answer(question, metrics.metric(key).symbol, [result for result in chosen if result.metric == key])
            for question, key in questions
        ]
        found.insert(3, _answer("Best quality per joule", "Q/J", quality_per_joule(axis, chosen)))
        failed = [result for result in chosen if evidence.records[axis, result.cell].status == "failed"]
        absent = list(dict.fromkeys(_labels(chosen, result) for result in failed))
        cards.append(Answers(axis, registry.AXIS_LABELS[axis], f"models of size {size}", found, absent))
    return cards


def quality_per_joule(axis: str, results: list[Result]) -> list[Result]:
    """Weighs the tokens per joule of each row by its quality: the probability of the right token, or the share of right answers.

    The interval reaches from the worst quality at the highest energy to the best at the lowest, so it is too wide rather
    than too narrow.

    Args:
        axis: The axis.
        results: Results of its rows.

    Returns:
        One result per row that has both figures.
    """
    quality = {
        (one.group, one.technique): one
        for one in results
        if one.metric == metrics.PERFORMANCE[axis] and one.value is not None
    }
    joined = []
    for energy in results:
        worth = quality.get((energy.group, energy.technique))
        if energy.metric != _ENERGY or energy.value is None or worth is None or worth.value is None:
            continue
        ends = None
        if None not in (energy.ci_low, energy.ci_high, worth.ci_low, worth.ci_high):
            low, high = sorted(_SHARE[axis](end) for end in (worth.ci_low, worth.ci_high) if end is not None)
            ends = (low / energy.ci_high, high / energy.ci_low) if energy.ci_low and energy.ci_high else None
        joined.append(
            replace(
                energy, metric="quality_per_joule", value=_SHARE[axis](worth.value) / energy.value, unit="token/J",
                direction="higher", ci_low=ends and ends[0], ci_high=ends and ends[1],
            )
        )  # fmt: skip
    return joined


def _answer(question: str, symbol: str, results: list[Result]) -> Answer:
    own = [result for result in results if result.value is not None]
    if measured := [result for result in own if result.source == "measured"]:
        own = measured
    # one candidate per cell: several rows may share it
    candidates = list({result.cell: result for result in reversed(own)}.values())[::-1]
    if not candidates:
        return Answer(question, symbol)
    estimates = [
        Estimate(result.value, result.ci_low, result.ci_high) for result in candidates if result.value is not None
    ]
    best = ranks([item.value for item in estimates], candidates[0].direction).index(1)
    winner = candidates[best]
    scale = column_scale((result.value for result in candidates), winner.unit)
    value, interval = scaled_estimate(winner, scale)
    tied = [candidates[position] for position in ties(estimates)[best]]
    return Answer(
        question, symbol, _labels(results, winner),
        identifier("row", winner.axis, winner.group, winner.technique), value, scale.unit, interval,
        winner.source == "modelled", bool(doubts(winner)), bool(winner.noisy),
        listing(_labels(results, other) for other in tied), winner.label, listing(other.label for other in tied),
        len(candidates),
    )  # fmt: skip


def _labels(results: list[Result], winner: Result) -> str:
    same = (result.label for result in results if result.cell == winner.cell)
    return " / ".join(dict.fromkeys(same))


def finding(cards: Iterable[Answers]) -> str:
    """Says in one sentence which techniques need the least energy per token."""
    parts = []
    answered = [card for card in cards if card.answers[0].label is not None]
    scopes = list(dict.fromkeys(card.scope for card in answered))
    for card in answered:
        energy = card.answers[0]
        among = f" among {card.scope}" if len(scopes) > 1 else ""
        tied = f", not distinguishable from {energy.tied_with_short}" if energy.tied_with else ""
        tied += f", {len(card.absent)} failed" if card.absent else ""
        modelled = ", modelled" if energy.modelled else ""
        modelled += ", doubtful" if energy.doubtful else ""
        parts.append(f"{energy.short} {_VERBS[card.axis]}{among} ({energy.value} {energy.unit}{modelled}{tied})")
    if not parts:
        return "No energy per token could be established: each gap is listed with its reason below."
    return f"Among {scopes[0]}, {listing(parts)}." if len(scopes) == 1 else f"{listing(parts)}."


@dataclass(frozen=True)
class Counts:
    """Metrics of distinct cells, by how they came about."""

    cells: int
    failed: int
    measured: int
    modelled: int
    missing: int
    noisy: int
    doubtful: int
    over_seeds: int


def counts(evidence: Evidence) -> Counts:
    """Counts each metric of each cell once, also where several rows share the cell."""
    distinct = {(result.axis, result.cell, result.metric): result for result in evidence.results}.values()
    return Counts(
        cells=len(evidence.records),
        failed=sum(record.status == "failed" for record in evidence.records.values()),
        measured=sum(result.source == "measured" for result in distinct),
        modelled=sum(result.source == "modelled" for result in distinct),
        missing=sum(result.missing_reason is not None for result in distinct),
        noisy=sum(bool(result.noisy) for result in distinct),
        doubtful=sum(bool(doubts(result)) for result in distinct),
        over_seeds=sum(result.seeds is not None for result in distinct),
    )


def flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Lists the leaves of nested JSON as dotted names and texts; null becomes "none"."""
    if isinstance(content, dict):
        for key in sorted(content):
            yield from flatten(content[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        for position, item in enumerate(content):
            yield from flatten(item, f"{prefix}.{position}")
    elif isinstance(content, list):
        yield prefix, ", ".join(str(item) for item in content) or "none"
    else:
        whole = isinstance(content, float) and content.is_integer()
        yield prefix, "none" if content is None else f"{content:.0f}" if whole else str(content)
