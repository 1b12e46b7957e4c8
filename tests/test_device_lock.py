"""Cells take turns on a device: between processes, and between equal GPUs."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from efficientllm import device_lock
from efficientllm.device_lock import FOLDER_VARIABLE, claimed
from efficientllm.errors import MeasurementError

HOLDER = """
import sys, time
from efficientllm.device_lock import claimed
with claimed(sys.argv[1], alone=sys.argv[2] == "alone"):
    print("in", time.monotonic(), flush=True)
    sys.stdin.readline()
    print("out", time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    monkeypatch.setattr(device_lock, "_POLL_S", 0.01)
    return tmp_path / "locks"


class Holder:
    """Another process that claims the device until it is told to let go."""

    def __init__(self, purpose: str, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, purpose, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def test_two_processes_measure_one_after_the_other() -> None:
    first = Holder("measuring tune@lora-small", "alone")
    entered = first.line()
    assert entered.startswith("in ")
    second = Holder("measuring pretrain@mqa", "alone")
    assert second.line() == (
        f"measuring pretrain@mqa is waiting for the CPU, which process {first.process.pid} (measuring tune@lora-small) is using"
    )
    first.let_go()
    left, came = first.line().split(), second.line().split()
    assert (left[0], came[0]) == ("out", "in")
    assert float(came[1]) >= float(left[1])
    second.process.kill()  # an end without a word frees the device too
    second.process.wait()
    with claimed("measuring quantize@int4-small", alone=True) as device:
        assert device == torch.device("cpu")
    first.process.wait()


def test_who_trained_on_the_device_meanwhile_is_known_afterwards() -> None:
    assert device_lock.others_meanwhile() == []
    with claimed("tune@dora-small", alone=False):
        assert device_lock.others_meanwhile() == []
        other = Holder("tune@lora-small", "together")
        assert other.line().startswith("in ")
        other.let_go()
        other.process.wait()
        assert device_lock.others_meanwhile() == ["tune@lora-small"], "also when it has left"
    with claimed("tune@dora-small", alone=False):
        assert device_lock.others_meanwhile() == [], "the device was free in between"


def test_training_shares_the_device_and_measuring_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def measure() -> None:
        with claimed("measuring", alone=True):
            entered.set()
            leave.wait(10)

    with claimed("training", alone=False), claimed("another training", alone=False):
        thread = threading.Thread(target=measure)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    started = time.monotonic()
    threading.Timer(0.2, leave.set).start()
    with claimed("training", alone=False):
        assert time.monotonic() - started > 0.15
    thread.join()
    assert capsys.readouterr().out.count("is waiting for the CPU") == 2, "one line for each that waits"


def test_names_of_the_dead_are_not_told(folder: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with claimed("training", alone=False):
        (path,) = folder.iterdir()
        with path.open("a") as stream:
            stream.write(f"process {gone.pid} (long ago)\nprocess {os.getppid()} (now)\nrubbish\n")
        assert device_lock._holders(path) == [f"process {os.getppid()} (now)"]
    with claimed("measuring", alone=True):
        assert path.read_text() == f"process {os.getpid()} (measuring)\n", "whoever is alone begins a new list"


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "locks"))
    with pytest.raises(MeasurementError, match=rf"set {FOLDER_VARIABLE} to a folder"), claimed("x", alone=True):
        pass


def test_everyone_may_lock(folder: Path) -> None:
    with claimed("x", alone=True):
        (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o666
    assert folder.stat().st_mode & 0o7777 == 0o1777


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two equal ones and another; returns which ones are made current."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(name="A" if device.index != 1 else "B", uuid=f"0000-{device.index}"),
    )
    return chosen


def test_each_worker_takes_a_free_gpu_of_the_same_kind(three_gpus: list[torch.device]) -> None:
    with claimed("first", alone=True) as first, claimed("second", alone=True) as second:
        assert [first.index, second.index] == [0, 2]
    with claimed("first", alone=False) as first, claimed("second", alone=False) as second:
        assert [first.index, second.index] == [0, 2], "trainings spread too"
        with claimed("third", alone=False) as third:
            assert third.index == 0, "and share where none is free"
    assert [device.index for device in three_gpus] == [0, 2, 0, 2, 0]


def test_processes_that_train_together_keep_their_own_gpu(
    three_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lock.world, "current", lambda: SimpleNamespace(rank=1))
    with claimed("first", alone=False) as first, claimed("second", alone=False) as second:
        assert [first.index, second.index] == [0, 0]
