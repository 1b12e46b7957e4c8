"""How the pipeline is cut into units, and who takes which."""

import threading

import pytest

from efficientllm.errors import ParameterError
from efficientllm.workers.repro import Schedule
from efficientllm.workers.units import needed_for, runnable, units

NEEDED = {
    "probe": [],
    "prepare": ["probe"],
    "pretrain@dense_small": ["prepare"],
    "pretrain@mqa": ["prepare"],
    "base@small": ["prepare", "pretrain@dense_small"],
    "tune@lora-small": ["prepare", "base@small"],
    "tune@lora_plus-small": ["prepare", "base@small"],
    "quantize@int4-small": ["base@small", "tune@lora-small"],
    "measure_pretrain@dense_small": ["probe", "prepare", "pretrain@dense_small"],
    "measure_pretrain@mqa": ["probe", "prepare", "pretrain@mqa"],
    "measure_tune@lora-small": ["probe", "prepare", "base@small", "tune@lora-small"],
    "measure_tune@lora_plus-small": ["probe", "prepare", "base@small", "tune@lora_plus-small"],
    "measure_quantize@int4-small": ["probe", "prepare", "base@small", "tune@lora-small", "quantize@int4-small"],
    "replicate_tune@lora-small-1": ["prepare", "base@small"],
    "normalize": ["measure_pretrain@mqa", "measure_tune@lora-small"],
    "report": ["probe", "prepare", "normalize"],
}


def test_what_is_ranked_together_is_one_unit_and_measured_as_soon_as_it_is_made() -> None:
    found = {unit.name: unit for unit in units(NEEDED)}
    assert {name: unit.stages for name, unit in found.items()} == {
        "pretrain@dense_small": ("pretrain@dense_small", "measure_pretrain@dense_small"),
        "pretrain@mqa": ("pretrain@mqa", "measure_pretrain@mqa"),
        "base@small": ("base@small",),
        "tune@*-small": (
            "tune@lora-small", "measure_tune@lora-small", "tune@lora_plus-small", "measure_tune@lora_plus-small",
        ),
        "quantize@*-small": ("quantize@int4-small", "measure_quantize@int4-small"),
        "replicate_tune@lora-small-1": ("replicate_tune@lora-small-1",),
    }  # fmt: skip
    quantize = found["quantize@*-small"]
    assert quantize.needs == {"pretrain@dense_small", "base@small", "tune@*-small"}
    assert quantize.ancestors == ("prepare", "pretrain@dense_small", "base@small", "tune@lora-small")


def test_what_stands_alone_is_between_the_chains() -> None:
    sizes = {
        stage.replace("small", size): [needed.replace("small", size) for needed in needs]
        for size in ("small", "medium", "large")
        for stage, needs in NEEDED.items()
        if "replicate" not in stage
    }
    sizes["pretrain@nsa"] = sizes["measure_pretrain@nsa"] = ["prepare"]
    found = units(sizes)
    assert [unit.name for unit in found] == [
        "pretrain@dense_small", "base@small", "tune@*-small", "quantize@*-small",
        "pretrain@dense_medium", "base@medium", "tune@*-medium", "quantize@*-medium",
        "pretrain@mqa", "pretrain@nsa",
        "pretrain@dense_large", "base@large", "tune@*-large", "quantize@*-large",
    ]  # fmt: skip
    schedule = Schedule(found, sizes)
    taken = schedule.take(first=False)
    assert taken is not None
    assert taken.name == "pretrain@dense_large", "or the others of its chain would wait until the end"


def test_every_stage_runs_after_what_it_needs() -> None:
    for unit in units(NEEDED):
        order = ["probe", *unit.ancestors, *unit.stages]
        for position, stage in enumerate(order):
            assert set(NEEDED[stage]) <= set(order[:position]), stage


def test_one_worker_takes_the_first_unit_that_can_run_the_other_the_last() -> None:
    schedule = Schedule(units(NEEDED), NEEDED)
    one, two = schedule.take(first=True), schedule.take(first=False)
    assert one is not None
    assert two is not None
    assert (one.name, two.name) == ("pretrain@mqa", "pretrain@dense_small")
    waiting: list[str] = []

    def take() -> None:
        unit = schedule.take(first=False)
        waiting.append("" if unit is None else unit.name)

    waiter = threading.Thread(target=take)
    waiter.start()
    assert schedule.end(one) == 1
    waiter.join(0.2)
    assert waiter.is_alive(), "all that is left needs the base"
    schedule.end(two)
    waiter.join(10)
    assert waiting == ["base@small"]


def test_nothing_more_is_taken_after_a_stop() -> None:
    schedule = Schedule(units(NEEDED), NEEDED)
    schedule.stop()
    assert schedule.take(first=True) is None


def test_what_needs_a_failed_stage_is_left_out() -> None:
    stages = [stage for unit in units(NEEDED) for stage in unit.stages]
    left = runnable(stages, {"tune@lora-small"}, NEEDED)
    assert set(stages) - set(left) == {
        "tune@lora-small", "measure_tune@lora-small", "quantize@int4-small", "measure_quantize@int4-small",
    }  # fmt: skip


def test_targets_bring_what_they_need_and_no_more() -> None:
    part = needed_for(["measure_tune@lora_plus-small"], NEEDED)
    assert [unit.name for unit in units(part)] == ["pretrain@dense_small", "base@small", "tune@*-small"]
    assert units(part)[-1].stages == ("tune@lora_plus-small", "measure_tune@lora_plus-small")
    assert needed_for(["report"], NEEDED).keys() >= {"normalize", "measure_pretrain@mqa", "probe"}
    assert {unit.name for unit in units(needed_for(["measure_pretrain"], NEEDED))} == {
        "pretrain@dense_small", "pretrain@mqa"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("measure_pretrain@mqb", "unknown stage 'measure_pretrain@mqb'; did you mean 'measure_pretrain@mqa'"),
        ("mesure_pretrain", "unknown stage 'mesure_pretrain'; did you mean 'measure_pretrain'"),
    ],
)
def test_unknown_targets_are_named(target: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        needed_for([target], NEEDED)
