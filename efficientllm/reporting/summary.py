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
from efficientllm.reporting.groups import axes_of, results_by_cell, row_labels
from efficientllm.reporting.parts import cards_of
from efficientllm.reporting.text import column_scale, identifier, listing, scaled_estimate

_ENERGY = "energy_per_token"
_MEMORY = "accelerator_memory_utilization"
# quality as a share, from each axis' performance metric: perplexity, loss in nats, percent of right answers
_SHARE: dict[registry.Axis, Callable[[float], float]] = {
    "pretrain": lambda perplexity: 1 / perplexity,
    "tune": lambda loss: math.exp(-loss),
    "quantize": lambda percent: percent / 100,
}
_PHASES: dict[registry.Axis, str] = {"pretrain": "training", "tune": "tuning", "quantize": "generation"}


@dataclass(frozen=True)
class Answer:
    """The best row of a group in one question; `label` is None where nothing was measured.

    `group` names the group, `of` is the number of rows compared; `several_cards` says that not all of them were measured on
    one GPU.
    """

    group: str
    label: str | None = None
    row_id: str | None = None
    value: str | None = None
    unit: str | None = None
    interval: str | None = None
    modelled: bool = False
    doubtful: bool = False
    noisy: bool = False
    several_cards: bool = False
    tied_with: str = ""
    of: int = 0


@dataclass(frozen=True)
class Question:
    """A question, the symbol of its metric, the id of what explains it, and an answer per group."""

    text: str
    symbol: str
    meaning: str
    target: str
    answers: list[Answer]


@dataclass(frozen=True)
class Answers:
    """The questions of one axis: a card; `absent` names the rows whose cells failed, which might have been an answer."""

    axis: registry.Axis
    label: str
    scope: str
    questions: list[Question]
    absent: list[str]
    on_cpu: bool

    @property
    def several_cards(self) -> bool:
        """Whether any of its answers is among rows of several GPUs."""
        return any(answer.several_cards for question in self.questions for answer in question.answers)


def answers(evidence: Evidence) -> list[Answers]:
    """Finds the best row of each group in energy per token, speed, memory, quality per joule and quality.

    Only cells of the reference size are compared, so that a smaller model is no answer to a question about techniques; and
    only rows of one group with each other, as in the ranking.
    """
    cards = []
    for axis in axes_of(evidence.rows):
        size = reference_size(evidence.results, axis)
        chosen = [result for result in evidence.results if result.axis == axis and result.size == size]
        asked = (
            ("Lowest energy per token", _ENERGY), ("Fastest", metrics.THROUGHPUT[axis]), ("Smallest memory", _MEMORY),
            ("Best quality", metrics.PERFORMANCE[axis]),
        )  # fmt: skip
        groups = {(row.group, row.group_label): None for row in evidence.rows if row.axis == axis}
        present = [(key, label) for key, label in groups if any(result.group == key for result in chosen)]
        found = [
            Question(
                text, entry.symbol, entry.label, f"metric-{key}",
                _by_group(evidence, axis, present, [result for result in chosen if result.metric == key]),
            )
            for text, key in asked
            for entry in (metrics.metric(key),)
        ]  # fmt: skip
        worth = _by_group(evidence, axis, present, quality_per_joule(axis, chosen))
        found.insert(3, Question("Best quality per joule", "Q/J", "quality per joule", "word-quality-per-joule", worth))
        records = [evidence.records[key] for key in {(axis, result.cell) for result in chosen}]
        failed = [result for result in chosen if evidence.records[axis, result.cell].status == "failed"]
        absent = list(dict.fromkeys(row_labels(evidence.rows, axis, result.cell) for result in failed))
        on_cpu = any(not record.provenance.hardware.get("gpus") for record in records)
        cards.append(Answers(axis, registry.AXIS_LABELS[axis], f"models of size {size}", found, absent, on_cpu))
    return cards


def quality_per_joule(axis: registry.Axis, results: list[Result]) -> list[Result]:
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


def _by_group(
    evidence: Evidence, axis: registry.Axis, groups: Iterable[tuple[str, str]], results: list[Result]
) -> list[Answer]:
    answered = []
    for key, label in groups:
        candidates = _candidates([result for result in results if result.group == key])
        cards = cards_of(evidence, axis, (result.cell for result in candidates))
        answered.append(_answer(label, candidates, several_cards=len(cards) > 1))
    return answered


def _candidates(results: list[Result]) -> list[Result]:
    """The results that are compared: those with a value, and only measured ones where there are any."""
    candidates = [result for result in results if result.value is not None]
    if measured := [result for result in candidates if result.source == "measured"]:
        candidates = measured
    return candidates


def _answer(group: str, candidates: list[Result], *, several_cards: bool) -> Answer:
    if not candidates:
        return Answer(group)
    estimates = [
        Estimate(result.value, result.ci_low, result.ci_high) for result in candidates if result.value is not None
    ]
    best = ranks([item.value for item in estimates], candidates[0].direction).index(1)
    winner = candidates[best]
    scale = column_scale((result.value for result in candidates), winner.unit)
    value, interval = scaled_estimate(winner, scale)
    return Answer(
        group, winner.label, identifier("row", winner.axis, winner.group, winner.technique), value, scale.unit, interval,
        winner.source == "modelled", bool(doubts(winner)), bool(winner.noisy), several_cards,
        listing(candidates[position].label for position in ties(estimates)[best]), len(candidates),
    )  # fmt: skip


def finding(cards: Iterable[Answers]) -> str:
    """Says in one sentence which techniques use the least energy per token, and in another what a CPU's order is worth."""
    parts = list[str]()
    answered = [card for card in cards if _least_energy(card)]
    scopes = list(dict.fromkeys(card.scope for card in answered))
    for card in answered:
        among = f" among {card.scope}" if len(scopes) > 1 else ""
        parts.append(f"{_winners(card, first=not parts)} in {_PHASES[card.axis]}{among}{_figures(card)}")
    if not parts:
        return "No energy per token could be established: each gap is listed with its reason below."
    sentence = f"Among {scopes[0]}, {'; '.join(parts)}." if len(scopes) == 1 else f"{'; '.join(parts)}."
    on_cpu = any(card.on_cpu for card in answered)
    return f"{sentence} Measured on a CPU: another run may order close figures otherwise." if on_cpu else sentence


def _least_energy(card: Answers) -> list[Answer]:
    """The answers to the first question; those without a competitor only where no group has any."""
    known = [answer for answer in card.questions[0].answers if answer.label is not None]
    return [answer for answer in known if answer.of > 1] or known


def _winners(card: Answers, *, first: bool) -> str:
    """Names the winners of a card, with their groups where there are several; the verb stands in the first part only."""
    found = _least_energy(card)
    if len(found) == 1:
        return f"{found[0].label}{' uses the least energy per token' if first else ''}"
    groups = [answer.group.removesuffix(" Mechanism") for answer in found]
    names = listing(
        f"{answer.label} ({group}{', tied' if answer.tied_with else ''})"
        for answer, group in zip(found, groups, strict=True)
    )
    return f"{names} {'use the least energy per token' if first else 'the least'} of their groups"


def _figures(card: Answers) -> str:
    """The value of a card's only winner, ties and doubts, in parentheses; of several, only what holds for some of them."""
    found = _least_energy(card)
    facts = [f"{found[0].value} {found[0].unit}"] if len(found) == 1 else []
    facts += ["modelled"] if any(answer.modelled for answer in found) else []
    facts += ["doubtful"] if len(found) == 1 and found[0].doubtful else []
    facts += [f"tied with {found[0].tied_with}"] if len(found) == 1 and found[0].tied_with else []
    facts += [f"{len(card.absent)} failed"] if card.absent else []
    return f" ({', '.join(facts)})" if facts else ""


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
    distinct = results_by_cell(evidence).values()
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
