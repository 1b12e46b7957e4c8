"""Which device each worker takes, and how many workers there may be."""

import subprocess
from pathlib import Path

import pytest
import torch

from efficientllm.errors import ParameterError
from efficientllm.workers.repro import _devices, repro

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_each_worker_sees_all_gpus_another_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _devices(None) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "1,0"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert _devices(2)[1] == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}
    assert _devices(1) == [{"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("count", [0, -1, 3])
def test_no_more_workers_than_gpus(count: int) -> None:
    with pytest.raises(ParameterError, match=f"--workers is {count}: give a number from 1 to that of the GPUs, 2"):
        _devices(count)


def test_a_cpu_takes_workers_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ParameterError, match=r"there is no GPU.*run `dvc repro`, or give --workers"):
        _devices(None)
    assert _devices(2) == [{}, {}]


def test_cells_that_take_all_gpus_are_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "profiles/cpu.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(text.replace("parallel: {strategy: none", "parallel: {strategy: ddp"))
    monkeypatch.chdir(tmp_path)
    for command in (
        ["init"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-m", "t"],
    ):
        subprocess.run(["git", *command], check=True, capture_output=True)
    with pytest.raises(ParameterError, match=r"parallel\.strategy is 'ddp'"):
        repro(2)
