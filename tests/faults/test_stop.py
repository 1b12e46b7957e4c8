"""Processes that are told to end, or whose parents end: training is saved, nothing is left running, the next run goes on."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from efficientllm import pipeline
from tests.faults.cells import STAGES
from tests.pipeline.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

PRETRAIN = ["python", "-m", "stages.pretrain", *STAGES["pretrain"]]
CELL = pipeline.address("pretrain@dense_small")
WEIGHTS = "artifacts/pretrain/dense_small/model.safetensors"
CHECKPOINT = ".checkpoints/pretrain/dense_small/checkpoint.safetensors"


def long_training(project: Project, steps: int = 4000, strategy: str = "none") -> None:
    """Makes pretraining too long to end before it is stopped, with a checkpoint that tells when it is under way."""
    project.replace("profiles/smoke.yaml", "steps: 6\n", f"steps: {steps}\n")
    project.replace("profiles/smoke.yaml", "checkpoint_seconds: 5.0", "checkpoint_seconds: 0.2")
    project.replace(
        "profiles/smoke.yaml", "{strategy: none, processes: auto}", f"{{strategy: {strategy}, processes: 2}}"
    )


def started(project: Project, command: list[str]) -> subprocess.Popen[str]:
    """Starts a command, and waits until the training in it is under way."""
    process = subprocess.Popen(
        command, cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    checkpoint = project.root / CHECKPOINT
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    wait(lambda: process.poll() is not None or (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before))
    assert process.poll() is None, process.communicate()[0]
    return process


def saved_step(project: Project) -> int:
    """The step of the checkpoint."""
    with safe_open(project.root / CHECKPOINT, framework="np") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def assert_told(project: Project, output: str, steps: int = 4000) -> None:
    """One line tells at which step the run is saved, and it is right."""
    (line,) = [line for line in output.splitlines() if line.startswith("terminated")]
    assert line == (
        f"terminated: pretrain@dense_small is saved at step {saved_step(project)} of {steps}; run the same command again to "
        "continue"
    )
    assert "Traceback" not in output


def wait(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(project: Project) -> list[int]:
    """Processes that hold the training's tokens: those that train, wherever they were started."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"{project.root}/artifacts/data/train.npy" in maps.read_text():
                found.append(int(maps.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("strategy", ["none", "ddp"])
def test_terminated_training_is_saved(copy: Project, strategy: str) -> None:
    long_training(copy, strategy=strategy)
    (copy.root / WEIGHTS).unlink()
    process = started(copy, PRETRAIN)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - before < 20
    assert_told(copy, output)
    assert not (copy.root / WEIGHTS).exists()
    wait(lambda: workers(copy) == [], 20)
    copy.replace("profiles/smoke.yaml", "strategy: ddp", "strategy: none") if strategy == "ddp" else None
    again = started(copy, PRETRAIN)
    again.terminate()
    output, _ = again.communicate(timeout=60)
    assert "resuming pretrain@dense_small at step" in output
    assert_told(copy, output)


@pytest.mark.parametrize("strategy", ["none", "ddp"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_dvc_takes_its_stage_with_it(copy: Project, strategy: str, number: signal.Signals) -> None:
    """Otherwise the next `dvc repro` would train beside the orphan, and both would write the same files."""
    long_training(copy, strategy=strategy)
    process = started(copy, ["dvc", "repro", "-s", CELL])
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)  # until the stage has closed it too
    assert_told(copy, output)
    wait(lambda: workers(copy) == [], 20)
    again = started(copy, ["dvc", "repro", "-s", CELL])
    again.terminate()
    output, _ = again.communicate(timeout=60)
    assert "resuming pretrain@dense_small at step" in output


def test_the_shell_of_a_scheduler_tells_the_stage_and_waits(copy: Project) -> None:
    """The lines of docs/distributed.md."""
    long_training(copy)
    page = (copy.root / "docs" / "distributed.md").read_text()
    found = re.search(r"```sh\n(trap .*?)```", page, re.DOTALL)
    assert found
    script = found[1].replace("dvc repro", f"dvc repro -s {CELL}")
    process = started(copy, ["bash", "-c", script])
    process.terminate()
    assert process.wait(60) == 143
    assert workers(copy) == [], "the shell has outlived them all"
    assert process.stdout is not None
    assert_told(copy, process.stdout.read())


def test_killed_training_processes_do_not_outlive_their_launcher(copy: Project) -> None:
    long_training(copy, strategy="ddp")
    process = started(copy, PRETRAIN)
    wait(lambda: len(workers(copy)) == 2)
    launcher = {int(re.search(r"PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in workers(copy)}  # type: ignore[index]
    assert len(launcher) == 1
    os.kill(launcher.pop(), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "was killed by SIGKILL" in output
    wait(lambda: workers(copy) == [], 20)


def test_two_runs_at_once(copy: Project) -> None:
    long_training(copy)
    first = started(copy, ["dvc", "repro", "-s", CELL])
    second = copy.run("dvc", "repro", "-s", CELL, check=False)
    assert second.returncode != 0
    errors = [line for line in second.stdout.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1, second.stdout
    assert "is busy, it is being blocked by" in second.stdout
    assert first.poll() is None, "the first one goes on"
    first.kill()
    first.communicate()
    wait(lambda: workers(copy) == [], 60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a folder read-only")
def test_read_only_cache(copy: Project) -> None:
    """Root may write whatever the mode says, so the cache is mounted read-only."""
    cache = copy.root / ".dvc" / "cache"
    copy.replace("profiles/smoke.yaml", "steps: 6\n", "steps: 7\n")
    mounted = subprocess.run(["mount", "--bind", cache, cache], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", cache], check=True)
        failed = copy.run("dvc", "repro", "-s", CELL, check=False)
    finally:
        subprocess.run(["umount", cache], check=True)
    assert failed.returncode != 0
    assert "Read-only file system" in failed.stdout
    assert "Traceback" not in failed.stdout
    again = copy.run("dvc", "repro", "-s", CELL).stdout
    assert Project.stages_run(again) == ["pretrain@dense_small"]
