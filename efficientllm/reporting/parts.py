"""The parts that a run was measured in, where its records do not all come from one revision and one kind of machine."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from efficientllm import registry
from efficientllm.records import Provenance
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import axes_of, cells_listing, groups_of


@dataclass(frozen=True)
class Part:
    """Cells that were measured at one revision, on machines that are described alike.

    Args:
        cells: Names them, whole axes by the axis' name.
        revision: The commit, marked where there were uncommitted changes.
        machine: What its parts may differ in: cards, driver, processor, cores, memory, PyTorch.
        cards: On how many of the machine's GPUs they were measured; 0 where the records name none.
    """

    cells: str
    revision: str
    machine: str
    cards: int


def parts(evidence: Evidence) -> list[Part]:
    """Lists the parts in the order of their first cells: a single one where all records are of one origin."""
    cells: dict[str, list[tuple[registry.Axis, str]]] = {}
    for key, origin in _origins(evidence).items():
        cells.setdefault(origin, []).append(key)
    return [_part(evidence, keys) for keys in cells.values()]


def mixed_groups(evidence: Evidence) -> list[str]:
    """Names the groups whose rows come from more than one part, so that their differences may be the parts'."""
    origins = _origins(evidence)
    return [
        group.title
        for group in groups_of(evidence)
        if len({origins[row.axis, row.cell] for row in group.rows if (row.axis, row.cell) in origins}) > 1
    ]


def cards_of(evidence: Evidence, axis: registry.Axis, cells: Iterable[str]) -> list[str]:
    """Lists the GPUs that cells were measured on, by the identifiers that the records name; equal ones differ by a few percent.

    Args:
        evidence: The run's evidence.
        axis: The axis.
        cells: Cells of the axis; those that failed or ran on a CPU have no card.
    """
    return sorted({card for cell in cells if (card := _card(evidence, (axis, cell))) is not None})


@dataclass(frozen=True)
class Cards:
    """The GPUs of a run of which more than one was used.

    Args:
        count: How many.
        kind: Their model's name where all are of one.
        groups: Groups whose rows come from more than one, by their titles.
        every: Whether these are all groups that have several measured rows.
    """

    count: int
    kind: str | None
    groups: list[str]
    every: bool


def cards(evidence: Evidence) -> Cards | None:
    """Says which groups mix GPUs, whose differences then are in those of the rows; None where at most one is named."""
    used = {card for key in evidence.records if (card := _card(evidence, key)) is not None}
    if len(used) < 2:
        return None
    groups = groups_of(evidence)
    mixed = [
        group.title for group in groups if len(cards_of(evidence, group.axis, (row.cell for row in group.rows))) > 1
    ]
    named = [sum(_card(evidence, (row.axis, row.cell)) is not None for row in group.rows) for group in groups]
    names = {
        str(card.get("name", "GPU"))
        for key, record in evidence.records.items()
        if _card(evidence, key) is not None
        for card in record.provenance.hardware.get("gpus") or []
    }
    return Cards(
        len(used), names.pop() if len(names) == 1 else None, mixed,
        len(mixed) == sum(rows > 1 for rows in named),
    )  # fmt: skip


def _card(evidence: Evidence, key: tuple[registry.Axis, str]) -> str | None:
    card = evidence.records[key].information.get("card")
    return None if card is None else str(card)


def revisions(evidence: Evidence) -> list[str]:
    """Lists the git revisions of the records, those with uncommitted changes marked."""
    return sorted({_revision(record.provenance) for record in evidence.records.values()})


def _revision(provenance: Provenance) -> str:
    name = provenance.git_revision[:12] if provenance.git_revision else "not known"
    return f"{name} with uncommitted changes" if provenance.git_dirty else name


def _origins(evidence: Evidence) -> dict[tuple[registry.Axis, str], str]:
    """What distinguishes parts, as a text, for each cell."""
    sources = {key: record.provenance for key, record in evidence.records.items()}
    return {key: json.dumps([_revision(known), known.hardware], sort_keys=True) for key, known in sources.items()}


def _part(evidence: Evidence, keys: list[tuple[registry.Axis, str]]) -> Part:
    named = []
    for axis in axes_of(evidence.rows):
        own = [cell for found, cell in keys if found == axis]
        if len(own) == sum(found == axis for found, _ in evidence.records):
            named.append(registry.AXIS_LABELS[axis])
        elif own:
            named.append(f"{registry.AXIS_LABELS[axis]}: {cells_listing(evidence.rows, axis, own)}")
    provenance = evidence.records[keys[0]].provenance
    used = {card for key in keys if (card := _card(evidence, key)) is not None}
    return Part("; ".join(named), _revision(provenance), _machine(provenance.hardware), len(used))


def _machine(hardware: dict[str, Any]) -> str:
    cards = hardware.get("gpus") or []
    processor = hardware.get("cpu") or {}
    names = [card.get("name", "GPU") for card in cards]
    facts = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    facts += [f"driver {driver}" for driver in dict.fromkeys(card.get("driver", "not known") for card in cards)]
    facts.append(str(processor.get("model", "processor not known")))
    if "allowed_cores" in processor:
        facts.append(f"{processor['allowed_cores']:g} cores")
    if hardware.get("ram_limit_gib"):
        facts.append(f"{hardware['ram_limit_gib']:.0f} GiB of memory")
    facts.append(f"PyTorch {(hardware.get('software') or {}).get('torch', 'not known')}")
    return ", ".join(facts)
