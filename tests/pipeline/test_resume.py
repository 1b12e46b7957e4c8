"""A pretraining cell that is killed with SIGKILL goes on from its checkpoint and ends with the same model."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import Project, working_copy

from efficientllm.files import file_hash

pytestmark = pytest.mark.slow


def curve(project: Project) -> list[tuple[str, str, str]]:
    with (project.root / "artifacts" / "telemetry" / "pretrain" / "dense_small" / "curve.csv").open() as stream:
        return [(row["step"], row["loss"], row["validation_loss"]) for row in csv.DictReader(stream)]


def test_killed_cell_resumes_and_ends_the_same(tmp_path: Path) -> None:
    project = working_copy(tmp_path / "project")
    project.replace("profiles/smoke.yaml", "steps: 6\n", "steps: 400\n")
    project.replace("profiles/smoke.yaml", "checkpoint_seconds: 5.0", "checkpoint_seconds: 0.2")
    project.run("python", "-m", "stages.prepare")
    command = ["python", "-m", "stages.pretrain", "--architecture", "dense_small"]
    weights = project.root / "artifacts" / "pretrain" / "dense_small" / "model.safetensors"
    checkpoint = project.root / ".checkpoints" / "pretrain" / "dense_small" / "checkpoint.safetensors"

    undisturbed = project.run(*command).stdout
    assert "resuming" not in undisturbed
    expected, expected_hash = curve(project), file_hash(weights)
    assert not checkpoint.exists(), "a finished cell leaves no checkpoint"
    weights.unlink()

    process = subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not weights.exists()

    resumed = project.run(*command).stdout
    assert "resuming pretrain@dense_small at step" in resumed
    assert curve(project) == expected
    assert file_hash(weights) == expected_hash
