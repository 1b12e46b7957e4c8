"""Processes that are told to end, or whose parents end: training is saved, nothing is left running, the next run goes on."""

import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientllm.files import file_hash
from tests.faults.cells import STAGES
from tests.pipeline.project import Project

pytestmark = pytest.mark.slow

PRETRAIN = ["python", "-m", "stages.pretrain", *STAGES["pretrain"]]
WEIGHTS = "artifacts/pretrain/dense_small/model.safetensors"
CHECKPOINT = ".checkpoints/pretrain/dense_small/checkpoint.safetensors"


def long_training(project: Project, steps: int = 4000) -> None:
    """Makes pretraining too long to end before it is stopped, with checkpoints so rare that only a stop writes one."""
    project.replace("profiles/smoke.yaml", "steps: 6\n", f"steps: {steps}\n")
    project.replace("profiles/smoke.yaml", "checkpoint_seconds: 5.0", "checkpoint_seconds: 3600.0")


def started(project: Project, command: list[str]) -> subprocess.Popen[str]:
    """Starts a command, and waits until the training in it is under way."""
    process = subprocess.Popen(
        command, cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait(lambda: workers(project) != [] or process.poll() is not None)
    time.sleep(3)
    assert process.poll() is None, process.communicate()[0]
    return process


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


def curve(project: Project) -> list[tuple[str, str]]:
    with (project.root / "artifacts/telemetry/pretrain/dense_small/curve.csv").open(newline="") as stream:
        return [(line["step"], line["loss"]) for line in csv.DictReader(stream)]


def test_terminated_training_is_saved_and_ends_the_same(copy: Project) -> None:
    long_training(copy, steps=300)
    copy.run(*PRETRAIN)
    expected, expected_hash = curve(copy), file_hash(copy.root / WEIGHTS)
    (copy.root / WEIGHTS).unlink()
    process = started(copy, PRETRAIN)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - before < 20
    line = output.splitlines()[-1]
    assert re.fullmatch(
        r"terminated: pretrain@dense_small is saved at step \d+ of 300; run the same command again to go on", line
    ), output
    assert not (copy.root / WEIGHTS).exists()
    assert "resuming pretrain@dense_small at step" in copy.run(*PRETRAIN).stdout
    assert curve(copy) == expected
    assert file_hash(copy.root / WEIGHTS) == expected_hash
    assert not (copy.root / CHECKPOINT).exists()


def test_terminated_processes_save_together(copy: Project) -> None:
    long_training(copy)
    copy.replace("profiles/smoke.yaml", "{strategy: none, processes: auto}", "{strategy: ddp, processes: 2}")
    process = started(copy, PRETRAIN)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    stopped = [line for line in output.splitlines() if line.startswith("terminated")]
    assert len(stopped) == 1, output
    assert re.match(r"terminated: pretrain@dense_small is saved at step \d+ of 4000", stopped[0])
    assert "Traceback" not in output
    assert (copy.root / CHECKPOINT).exists()
    wait(lambda: workers(copy) == [], 20)


@pytest.mark.parametrize("strategy", ["none", "ddp"])
def test_killed_dvc_takes_its_stage_with_it(copy: Project, strategy: str) -> None:
    """Otherwise the next `dvc repro` would train beside the orphan, and both would write the same files."""
    long_training(copy)
    copy.replace("profiles/smoke.yaml", "{strategy: none, processes: auto}", f"{{strategy: {strategy}, processes: 2}}")
    process = started(copy, ["dvc", "repro", "-s", "pretrain@dense_small"])
    process.kill()
    wait(lambda: workers(copy) == [], 60)
    process.communicate()
    assert (copy.root / CHECKPOINT).exists(), "the stage had the time to save"
    again = started(copy, ["dvc", "repro", "-s", "pretrain@dense_small"])
    again.terminate()
    output, _ = again.communicate(timeout=60)
    assert "resuming pretrain@dense_small at step" in output
    wait(lambda: workers(copy) == [], 60)


def test_killed_training_processes_do_not_outlive_their_launcher(copy: Project) -> None:
    long_training(copy)
    copy.replace("profiles/smoke.yaml", "{strategy: none, processes: auto}", "{strategy: ddp, processes: 2}")
    process = started(copy, PRETRAIN)
    wait(lambda: len(workers(copy)) == 2)
    launcher = {int(re.search(r"PPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in workers(copy)}  # type: ignore[index]
    assert len(launcher) == 1
    os.kill(launcher.pop(), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "was ended by SIGKILL" in output
    wait(lambda: workers(copy) == [], 20)


def test_two_runs_at_once(copy: Project) -> None:
    long_training(copy)
    first = started(copy, ["dvc", "repro", "-s", "pretrain@dense_small"])
    second = copy.run("dvc", "repro", "-s", "pretrain@dense_small", check=False)
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
        failed = copy.run("dvc", "repro", "-s", "pretrain@dense_small", check=False)
    finally:
        subprocess.run(["umount", cache], check=True)
    assert failed.returncode != 0
    assert "Read-only file system" in failed.stdout
    assert "Traceback" not in failed.stdout
    again = copy.run("dvc", "repro", "-s", "pretrain@dense_small").stdout
    assert Project.stages_run(again) == ["pretrain@dense_small"]
