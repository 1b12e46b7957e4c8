"""What a worker takes at a time: the stages that should run one after another on one device.

All methods of one size, and all precisions of one size, are one unit each, since they are ranked against each other and equal
cards differ by some percent; an architecture is one by itself. DVC's own graph says what each unit needs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from efficientllm.errors import unknown_name
from efficientllm.registry import cell_name, technique_and_size

CLOSING = ("normalize", "report")
"""Stages that need everything else, and are left to a last `dvc repro`."""
OPENING = ("probe", "prepare")
"""Stages that the others need, and that read files which only the user's own folder has."""

_BY_SIZE = ("tune", "quantize")
_MEASURING = "measure_"


@dataclass(frozen=True)
class Unit:
    """Stages of one worker.

    Args:
        name: For messages, such as `tune@*-small`.
        stages: Its stages, in an order in which they can run.
        ancestors: Other units' stages that these need, likewise.
        needs: Names of the units that those belong to.
    """

    name: str
    stages: tuple[str, ...]
    ancestors: tuple[str, ...]
    needs: frozenset[str]


def needed_for(targets: Collection[str], needed_by_stage: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The part of a pipeline that some stages need, and they themselves.

    Args:
        targets: Names of stages, or of groups of them such as `measure_tune`.
        needed_by_stage: For each stage the stages whose outputs it reads.

    Returns:
        The same for that part.

    Raises:
        ParameterError: A target is neither.
    """
    meant: list[str] = []
    for target in targets:
        found = [stage for stage in needed_by_stage if target in (stage, stage.partition("@")[0])]
        if not found:
            groups = {stage.partition("@")[0] for stage in needed_by_stage}
            raise unknown_name("stage", target, needed_by_stage if target.partition("@")[0] in groups else groups)
        meant += found
    return {stage: list(needed_by_stage[stage]) for stage in _ordered(meant, needed_by_stage)}


def units(needed_by_stage: Mapping[str, Sequence[str]]) -> list[Unit]:
    """Groups the stages of a pipeline.

    Args:
        needed_by_stage: For each stage the stages whose outputs it reads.

    Returns:
        Units without the opening and the closing stages, in an order in which they could run: chains of units that need one
        another stand at both ends and what stands alone between them, so that two workers, one from each end, begin
        with what takes longest to follow.
    """
    # a cell is measured as soon as it is made, not after all of its kind
    first = sorted(needed_by_stage, key=lambda name: not name.startswith(_MEASURING))
    order = _ordered(first, needed_by_stage)
    above: dict[str, set[str]] = {}
    for stage in order:
        above[stage] = set[str]().union(*(above[needed] | {needed} for needed in needed_by_stage[stage]))
    grouped: dict[str, list[str]] = {}
    for stage in order:
        if stage not in (*OPENING, *CLOSING):
            grouped.setdefault(_unit_of(stage), []).append(stage)
    groups = _chains([_unit(name, stages, order, above) for name, stages in grouped.items()])
    alone = [group for group in groups if len(group) == 1]
    chains = [group for group in groups if len(group) > 1]
    return [unit for group in (*chains[:-1], *alone, *chains[-1:]) for unit in group]


def runnable(
    stages: Collection[str], failed: Collection[str], needed_by_stage: Mapping[str, Sequence[str]]
) -> list[str]:
    """Leaves out the stages that failed, and those that need one of them."""

    def lost(stage: str) -> bool:
        return stage in failed or any(lost(needed) for needed in needed_by_stage[stage])

    return [stage for stage in stages if not lost(stage)]


def _chains(every: Sequence[Unit]) -> list[list[Unit]]:
    """Groups units that need one another, directly or through others; the order within a group stays."""
    groups: list[list[Unit]] = []
    for unit in every:
        linked = [group for group in groups if any(other.name in unit.needs for other in group)]
        together = [other for group in linked for other in group] + [unit]
        groups = [group for group in groups if group not in linked] + [together]
    return sorted(groups, key=lambda group: every.index(group[0]))


def _ordered(stages: Collection[str], needed_by_stage: Mapping[str, Sequence[str]]) -> list[str]:
    """Some stages and all that they need, each after what it needs."""
    order: dict[str, None] = {}

    def visit(stage: str) -> None:
        if stage not in order:
            for needed in needed_by_stage[stage]:
                visit(needed)
            order[stage] = None

    for stage in stages:
        visit(stage)
    return list(order)


def _unit_of(stage: str) -> str:
    family, _, cell = stage.removeprefix(_MEASURING).partition("@")
    return f"{family}@{cell_name('*', technique_and_size(cell)[1])}" if family in _BY_SIZE else f"{family}@{cell}"


def _unit(name: str, stages: list[str], order: list[str], above: dict[str, set[str]]) -> Unit:
    every = set[str]().union(*(above[stage] for stage in stages)) - set(stages)
    ancestors = tuple(stage for stage in order if stage in every and stage != "probe")
    return Unit(
        name, tuple(stages), ancestors, frozenset(_unit_of(stage) for stage in ancestors if stage not in OPENING)
    )
