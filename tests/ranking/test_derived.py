"""Energy to a loss, and quality over seeds: small cases worked out by hand."""

import json
from pathlib import Path

import pytest

from efficientllm import paths
from efficientllm.metrics import metric
from efficientllm.ranking.derived import joules_to_reach, with_energy_to_loss
from efficientllm.ranking.replicas import over_seeds
from efficientllm.records import ModelFacts, Provenance, Record, Replica, Value
from efficientllm.telemetry import Curve


def curve(*points: tuple[float | None, float | None]) -> Curve:
    count = len(points)
    return Curve(
        tokens=[float(index) for index in range(count)],
        loss=[1.0] * count,
        validation_loss=[loss for loss, _ in points],
        seconds=[float(index) for index in range(count)],
        joules=[joules for _, joules in points],
    )


@pytest.mark.parametrize(
    ("points", "loss", "expected"),
    [
        ([(4.0, 10.0), (2.0, 30.0)], 3.0, 20.0),  # halfway between two evaluations
        ([(4.0, 10.0), (None, 15.0), (2.0, 30.0), (1.0, 50.0)], 2.0, 30.0),
        ([(4.0, 10.0)], 5.0, 10.0),  # from the first evaluation on
        ([(4.0, 10.0), (3.0, 20.0)], 2.0, None),  # never reached
        ([(4.0, None), (1.0, None)], 2.0, None),  # no energy was read
        ([(4.0, 10.0), (5.0, 20.0), (3.0, 40.0)], 4.0, 10.0),  # the first time counts
    ],
)
def test_joules_to_reach(points, loss, expected):
    assert joules_to_reach(curve(*points), loss) == expected


def value(key: str, number: float) -> Value:
    known = metric(key)
    return Value(value=number, unit=known.unit, direction=known.direction, source="measured", method="m", n=1)


def record(cell: str, size: str = "small", **numbers: float) -> Record:
    facts = ModelFacts(
        parameters_total=1, parameters_active=1, parameters_trainable=1, bytes_on_disk=1, bytes_in_memory=1
    )
    # a whole record has all metrics of its axis; these cases need a few
    return Record.model_construct(
        axis="tune", cell=cell, technique=cell.split("-")[0], size=size, status="ok", model=facts, missing={},
        metrics={key: value(key, number) for key, number in numbers.items()}, information={},
        provenance=Provenance(seed=0, profile="smoke"),
    )  # fmt: skip


def telemetry(root: Path, cell: str, rows: list[tuple[float, float | str]], shared_with: tuple[str, ...] = ()) -> None:
    folder = root / paths.telemetry("tune", cell)
    folder.mkdir(parents=True)
    lines = [f"{step},{step * 10},1.0,{loss},0.1,{step},{joules}" for step, (loss, joules) in enumerate(rows, start=1)]
    header = "step,tokens,loss,validation_loss,learning_rate,seconds,joules"
    (folder / "curve.csv").write_text("\n".join([header, *lines]))
    hardware = {
        "device": "a GPU",
        "energy_method": "a counter",
        "energy_source": "measured",
        "shared_with": shared_with,
    }
    (folder / "run.json").write_text(json.dumps({"hardware": hardware}))


def test_energy_to_loras_loss(tmp_path: Path) -> None:
    telemetry(tmp_path, "lora-small", [(3.0, 10.0), (2.0, 20.0)])
    telemetry(tmp_path, "dora-small", [(4.0, 10.0), (1.0, 40.0)])
    telemetry(tmp_path, "freeze-small", [(4.0, 10.0), (3.0, 20.0)])
    telemetry(tmp_path, "pissa-small", [(4.0, ""), (1.0, "")])
    telemetry(tmp_path, "full-small", [(4.0, 10.0), (1.0, 40.0)], shared_with=("tune@lora-large",))
    telemetry(tmp_path, "dora-medium", [(4.0, 10.0), (1.0, 40.0)])
    cells = [
        record("lora-small"),
        record("dora-small"),
        record("freeze-small"),
        record("pissa-small"),
        record("full-small"),
        record("dora-medium", "medium"),
    ]
    found = with_energy_to_loss({("tune", entry.cell): entry for entry in cells}, tmp_path)
    taken = {cell: entry.metrics["energy_to_lora_loss"] for (_, cell), entry in found.items() if entry.metrics}
    assert {cell: entry.value for cell, entry in taken.items()} == {"lora-small": 20.0, "dora-small": 30.0}
    assert taken["dora-small"].source == "measured"
    assert found["tune", "freeze-small"].missing["energy_to_lora_loss"] == "its validation loss stayed above 2"
    assert found["tune", "pissa-small"].missing["energy_to_lora_loss"] == "its training read no energy"
    assert "not its own: tune@lora-large" in found["tune", "full-small"].missing["energy_to_lora_loss"]
    assert (
        "this run has no training curve of lora-medium" in found["tune", "dora-medium"].missing["energy_to_lora_loss"]
    )


def replica(seed: int, **numbers: float) -> Replica:
    return Replica(
        axis="tune", cell="lora-small", seed=seed, status="ok",
        metrics={key: value(key, number) for key, number in numbers.items()},
    )  # fmt: skip


def test_quality_over_seeds() -> None:
    own = record("lora-small", task_loss=2.0, average_latency=5.0)
    failed = Replica(axis="tune", cell="lora-small", seed=3, status="failed", reason="out of memory")
    merged = over_seeds(own, [replica(1, task_loss=4.0), replica(2, task_loss=1.0), failed])
    loss = merged.metrics["task_loss"]
    assert (loss.value, loss.n, loss.repeats) == (2.0, 3, [2.0, 4.0, 1.0])
    assert loss.ci_low is not None
    assert loss.ci_high is not None
    assert loss.ci_low < 2.0 < loss.ci_high
    assert loss.method.startswith("median of 3 seeds")
    assert merged.metrics["average_latency"] == own.metrics["average_latency"], "efficiency is not a matter of seeds"
    assert merged.information["failed_seeds"] == {"3": "out of memory"}
    assert merged.information["seeds"] == {"task_loss": 3}


def test_without_replicas_nothing_changes() -> None:
    own = record("lora-small", task_loss=2.0)
    assert over_seeds(own, []) == own
