"""Exit codes, one-line errors, and cells that fail without stopping the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efficientllm import paths
from efficientllm.errors import CellFailure, ParameterError
from efficientllm.stage import failure, run_cell, run_stage


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise ParameterError("parameter 'x' is 3")

    assert run_stage(main) == 1
    assert capsys.readouterr().err == "error: parameter 'x' is 3\n"


def test_interrupt_and_defects(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def broken() -> int:
        raise ZeroDivisionError

    assert run_stage(interrupted) == 130
    assert "continue from the last checkpoint" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_stage(broken)


STARTING = """
import os, subprocess, sys
stage = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"PARENT": str(os.getpid())})
if sys.argv[2] == "ends":
    os._exit(0)
stage.wait()
"""
STAGE = """
import os, time
while os.environ["EXPECTED"] == "ends" and os.getppid() == int(os.environ["PARENT"]):
    time.sleep(0.01)
from efficientllm.stage import run_stage
raise SystemExit(run_stage(lambda: print("works") or 0))
"""


@pytest.mark.parametrize(("parent", "works"), [("ends", False), ("stays", True)])
def test_a_stage_whose_dvc_has_ended_before_it_could_be_told(parent: str, works: bool) -> None:
    """Its interpreter takes some tenths of a second to start."""
    done = subprocess.run(
        [sys.executable, "-c", STARTING, STAGE, parent], cwd=Path(__file__).parents[1], start_new_session=True,
        env=os.environ | {"DVC_STAGE": "prepare", "EXPECTED": parent}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ("works" in done.stdout) == works, done.stderr
    assert ("terminated: no partial output was kept" in done.stderr) != works


def test_a_preloaded_process_is_no_orphan_though_its_server_has_a_session_of_its_own() -> None:
    stage = "from efficientllm.stage import run_stage\nraise SystemExit(run_stage(lambda: print('works') or 0))"
    done = subprocess.run(
        [sys.executable, "-c", stage], cwd=Path(__file__).parents[1], start_new_session=True,
        env=os.environ | {"DVC_STAGE": "prepare"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("works\n", 0), done.stderr


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CellFailure("no bfloat16 here"), "no bfloat16 here"),
        (MemoryError(), "out of host memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
    ],
)
def test_failed_cell_is_recorded_and_passed_on(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        raise error

    def never() -> None:
        raise AssertionError("the base failed, so nothing may run")

    assert run_cell("pretrain", "dense_small", [], work) == 0
    base = paths.artifact("pretrain", "dense_small")
    assert reason in str(failure(base))
    assert failure(paths.telemetry("pretrain", "dense_small")) == failure(base)
    assert run_cell("tune", "lora-small", [base], never) == 0
    assert str(base) in str(failure(paths.artifact("tune", "lora-small")))


def test_other_errors_stop_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_cell("pretrain", "dense_small", [], work)
    assert not paths.artifact("pretrain", "dense_small").exists()
