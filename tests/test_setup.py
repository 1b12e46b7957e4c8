"""The set-up script: what makes the environment anew, what it leaves alone, and which torch it takes."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.py"


class Machine:
    """A set-up in an empty folder: environments are made of one file, and commands are noted and answered, not run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        specification = importlib.util.spec_from_file_location("setup_script", SCRIPT)
        assert specification is not None
        assert specification.loader is not None
        self.script: ModuleType = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.script)
        self.commands: list[str] = []
        self.made = 0
        self.has_gpu = False
        self.fails: Callable[[str], bool] = lambda command: False
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "constraints.txt").write_text("numpy==2.0\ntorch==2.13.0\n")
        for name, value in {
            "ROOT": root, "ENVIRONMENT": root / ".venv", "CONSTRAINTS": root / "constraints.txt",
            "STAMP": root / ".venv" / "efficientllm-setup", "_has_nvidia_gpu": lambda: self.has_gpu,
        }.items():  # fmt: skip
            monkeypatch.setattr(self.script, name, value)
        monkeypatch.setattr(self.script.venv, "create", self.create)
        monkeypatch.setattr(self.script.subprocess, "run", self.run)
        monkeypatch.setattr(self.script.sys, "platform", "linux")

    def create(self, folder: Path, with_pip: bool) -> None:
        assert with_pip
        self.made += 1
        (folder / "pyvenv.cfg").write_text("")

    def run(self, command: list[str], check: bool, **_: object) -> subprocess.CompletedProcess[bytes]:
        line = " ".join(command[1:])
        self.commands.append(line)
        if self.fails(line):
            if check:
                raise subprocess.CalledProcessError(1, command)
            return subprocess.CompletedProcess(command, 1)
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_torch_comes_before_the_rest_and_a_second_run_does_nothing(machine: Machine) -> None:
    assert machine.script.main() == 0
    assert [("torch==2.13.0+cpu" in line, "-e" in line.split()) for line in machine.commands] == [
        (True, False),
        (False, True),
    ]
    machine.commands.clear()
    assert machine.script.main() == 0
    assert (machine.commands, machine.made) == ([], 1)


def test_changed_constraints_install_again_into_the_same_environment(machine: Machine) -> None:
    machine.script.main()
    machine.script.CONSTRAINTS.write_text("numpy==2.1\ntorch==2.14.0\n")
    machine.commands.clear()
    assert machine.script.main() == 0
    assert "torch==2.14.0+cpu" in machine.commands[0]
    assert machine.made == 1


def test_another_python_makes_the_environment_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.script.main()
    monkeypatch.setattr(machine.script.platform, "python_version", lambda: "3.99.0")
    assert machine.script.main() == 0
    assert machine.made == 2


def test_a_new_gpu_makes_the_environment_anew_with_the_standard_build(machine: Machine) -> None:
    machine.script.main()
    machine.has_gpu = True
    machine.commands.clear()
    assert machine.script.main() == 0
    assert machine.made == 2
    assert machine.commands[0].endswith("install --quiet --disable-pip-version-check torch==2.13.0")


def test_a_killed_creation_is_made_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path, with_pip: bool) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(machine.script.venv, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        machine.script.main()
    monkeypatch.setattr(machine.script.venv, "create", machine.create)
    assert machine.script.main() == 0
    assert not (machine.script.ENVIRONMENT / "half").exists()


def test_a_failed_installation_names_its_step_and_goes_on_next_time(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fails = lambda command: "-e" in command.split()
    assert machine.script.main() == 1
    error = capsys.readouterr().err
    assert "this step failed" in error
    assert "constraints.txt" in error
    machine.fails = lambda command: False
    assert machine.script.main() == 0
    assert machine.made == 1


def test_an_environment_of_the_users_is_left_alone(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.script.ENVIRONMENT.mkdir()
    (machine.script.ENVIRONMENT / "mine").write_text("")
    assert machine.script.main() == 1
    assert "was not made by this script" in capsys.readouterr().err
    assert (machine.script.ENVIRONMENT / "mine").exists()
    assert machine.commands == []


def test_without_a_cpu_build_uv_is_asked_and_then_the_standard_build_taken(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fails = lambda command: "+cpu" in command or "--torch-backend=cpu" in command
    assert machine.script.main() == 0
    tried = [next(mark for mark in ("+cpu", "constraints.txt uv", "backend=cpu", " torch==", "-e") if mark in line)
             for line in machine.commands]  # fmt: skip
    assert tried == ["+cpu", "constraints.txt uv", "backend=cpu", " torch==", "-e"]
    assert "several gigabytes with CUDA" in capsys.readouterr().out


def test_an_old_python_is_told_which_is_needed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine.script.sys, "version_info", (3, 10, 1))
    assert machine.script.main() == 1
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err
    assert not machine.script.ENVIRONMENT.exists()
