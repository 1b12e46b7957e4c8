"""The pipeline by two workers: each stage once, a failure costs only what needs it, and the same command goes on."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from project import Project, working_copy

from efficientllm import paths
from efficientllm.config import load
from efficientllm.records import read_record

pytestmark = pytest.mark.slow

FAULT = 'raise SystemExit("no quantizing today")\n'


def ran(project: Project) -> list[str]:
    logs = sorted((project.root / ".dvc/tmp/workers").glob("*.log"))
    return sorted(stage for log in logs for stage in Project.stages_run(log.read_text()))


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    project = working_copy(tmp_path / "project")
    project.narrow()
    project.replace("profiles/smoke.yaml", "    steps: 6\n", "    steps: 2000\n")
    project.commit()
    # as from a script that has started it in the background: SIGINT, by which the workers end, is ignored
    command = "trap '' INT; exec efficientllm repro --workers 1"
    with subprocess.Popen(
        ["sh", "-c", command], cwd=project.root, env=project.environment, text=True, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line == "worker 1: pretrain@dense_small\n":
                break
        checkpoints = project.root / ".dvc/tmp/workers/1/.checkpoints"
        wait_for(lambda: "step" in (project.root / ".dvc/tmp/workers/1.log").read_text())
        stopped = time.monotonic()
        running.terminate()
        running.stdout.read()
    assert running.returncode != 0
    assert time.monotonic() - stopped < 15, "the worker was killed, not interrupted"
    assert list(checkpoints.rglob("*.safetensors")), "the training saved its state"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_two_workers_run_each_stage_once(tmp_path: Path) -> None:
    project = working_copy(tmp_path / "project")
    project.narrow()
    assert "git commit" in project.run("efficientllm", "repro", "--workers", "2", check=False).stdout
    whole = (project.root / "stages/quantize.py").read_text()
    (project.root / "stages/quantize.py").write_text(FAULT + whole)
    project.commit()
    failed = project.run("efficientllm", "repro", "--workers", "2", check=False)
    assert failed.returncode == 1
    assert "error: failed: quantize@bfloat16-small; the others have run." in failed.stdout
    first = [
        "base@small", "measure_pretrain@dense_small", "measure_tune@lora-small", "pretrain@dense_small",
        "quantize@bfloat16-small", "tune@lora-small",
    ]  # fmt: skip
    assert ran(project) == first

    (project.root / "stages/quantize.py").write_text(whole)
    project.commit()
    done = project.run("efficientllm", "repro", "--workers", "2").stdout
    assert ran(project) == sorted([*first, "quantize@bfloat16-small", "measure_quantize@bfloat16-small"])
    assert Project.stages_run(done) == ["probe", "probe", "normalize", "report"], "all else is in the cache"
    for row in load(project.root).rows():
        assert read_record(project.root / paths.record(row.axis, row.cell)).status == "ok"
    assert (project.root / paths.REPORT).is_file()
    assert Project.stages_run(project.run("dvc", "repro").stdout) == ["probe"]
