"""The stages in two processes: the same losses and artifacts as in one, and the record of how they were made."""

import csv
import json
from pathlib import Path

import pytest
from project import Project, working_copy

from efficientllm import paths
from efficientllm.measurement.subjects import stored_bytes

pytestmark = pytest.mark.slow

CELLS = (("pretrain", "dense_small"), ("tune", "lora-small"))


def train(project: Project) -> None:
    project.run("python", "-m", "stages.pretrain", "--architecture", "dense_small")
    project.run("python", "-m", "stages.base", "--size", "small")
    project.run("python", "-m", "stages.tune", "--method", "lora", "--size", "small")


def losses(project: Project) -> list[list[float]]:
    found = []
    for axis, cell in CELLS:
        with (project.root / paths.telemetry(axis, cell) / "curve.csv").open(newline="") as stream:
            found.append([float(line["loss"]) for line in csv.DictReader(stream)])
    return found


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    project = working_copy(tmp_path / "project")
    for stage in ("probe", "prepare"):
        project.run("python", "-m", f"stages.{stage}")
    train(project)
    alone = losses(project)
    sizes = [stored_bytes(project.root / paths.artifact(axis, cell)) for axis, cell in CELLS]
    project.replace("profiles/smoke.yaml", "{strategy: none, processes: auto}", "{strategy: fsdp, processes: 2}")
    train(project)
    for (axis, cell), found, expected, size in zip(CELLS, losses(project), alone, sizes, strict=True):
        assert found == pytest.approx(expected, abs=2e-3), cell
        assert stored_bytes(project.root / paths.artifact(axis, cell)) == size
        run = json.loads((project.root / paths.telemetry(axis, cell) / "run.json").read_text())
        assert run["hardware"]["parallel"] == {"strategy": "fsdp", "processes": 2, "memory_peak_gib": None}
    project.replace("profiles/smoke.yaml", "processes: 2}", "processes: 3}")
    failed = project.run("python", "-m", "stages.pretrain", "--architecture", "dense_small", check=False)
    assert failed.returncode == 1
    assert failed.stdout.splitlines() == [
        "error: training.batch_size is 4, which 3 processes cannot share: change it or parallel.processes"
    ]
