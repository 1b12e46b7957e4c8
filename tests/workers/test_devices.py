"""Which device each worker takes, and how many workers there may be."""

import pytest
import torch

from efficientllm.errors import ParameterError
from efficientllm.workers.repro import _devices


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
