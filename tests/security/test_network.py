"""Nothing is sent: no telemetry, no look for updates, no download that nobody asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efficientllm import pipeline

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "pipeline"))
from project import Project, working_copy  # noqa: E402 - lies beside the pipeline's tests

RECORDER = '''
"""Notes every attempt of this process to reach another machine."""

import json
import socket
import sys


def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname"):
        return
    with open({log!r}, "a") as stream:
        stream.write(json.dumps([event, str(arguments[-1]), sys.argv]) + "\\n")


sys.addaudithook(note)
'''


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """Environment in which every Python process records its connections, and where it does."""
    log = tmp_path / "connections.jsonl"
    folder = tmp_path / "recorder"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(RECORDER.format(log=str(log)))
    home = tmp_path / "home"
    home.mkdir()
    return {"HOME": str(home), "PYTHONPATH": str(folder)}, log


def attempts(log: Path) -> list[object]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_the_recorder_records(recorded: tuple[dict[str, str], Path]) -> None:
    environment, log = recorded
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)
    assert [event for event, *_ in attempts(log)] == ["socket.getaddrinfo", "socket.connect"]  # type: ignore[misc]


@pytest.mark.slow
def test_a_run_reaches_for_nothing(tmp_path: Path, recorded: tuple[dict[str, str], Path]) -> None:
    """One cell of each axis by `dvc repro`, without a network where this system lets us take it away."""
    environment, log = recorded
    project = working_copy(tmp_path / "project")
    for name in ("DVC_NO_ANALYTICS", "CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CODECARBON_OFFLINE"):
        project.environment.pop(name, None)
    project.environment |= environment | {"PYTHONPATH": f"{project.root}{os.pathsep}{environment['PYTHONPATH']}"}
    (project.root / ".codecarbon.config").write_text(
        "[codecarbon]\nsave_to_api = True\nexperiment_id = mine\napi_key = x\n"
    )
    isolated = ["unshare", "--net"] if can_isolate() else []
    cells = ("measure_pretrain@dense_small", "measure_tune@lora-small", "measure_quantize@int4-small")
    output = project.run(*isolated, "dvc", "repro", *map(pipeline.address, cells)).stdout
    assert set(cells) <= set(Project.stages_run(output))
    assert attempts(log) == []


def can_isolate() -> bool:
    tool = shutil.which("unshare")
    return (
        tool is not None and subprocess.run([tool, "--net", "true"], capture_output=True, check=False).returncode == 0
    )


def test_dvc_sends_nothing() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--list", "--project"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {"core.analytics=false", "core.check_update=false"} <= set(shown)


def test_codecarbon_takes_nothing_from_the_users_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .codecarbon.config may send every figure to a server, or double it."""
    from efficientllm.measurement.energy import offline_tracker

    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\nsave_to_api = True\npue = 2.0\nforce_cpu_power = 1000\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODECARBON_SAVE_TO_FILE", "true")
    tracker = offline_tracker("USA")
    sends = ("save_to_api", "save_to_file", "save_to_logger", "save_to_prometheus", "save_to_logfire")
    assert not any(getattr(tracker, f"_{name}") for name in sends)
    assert (tracker._pue, tracker._force_cpu_power, tracker._force_ram_power) == (1.0, None, None)


@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yaml")))
def test_workflows_are_yaml_and_may_write_nothing(workflow: str) -> None:
    content = YAML(typ="safe").load((ROOT / ".github" / "workflows" / workflow).read_text())
    # a page is deployed with a token of its own, which touches no code
    pages = {"pages": "write", "id-token": "write"} if workflow == "pages.yaml" else {}
    assert content["permissions"] == {"contents": "read", **pages}
