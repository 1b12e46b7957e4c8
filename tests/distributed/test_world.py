"""What the processes share and how their figures add up, by hand-computed cases."""

import pytest
import torch

from efficientllm.config.schema import ParallelSettings
from efficientllm.data.packing import IGNORED
from efficientllm.distributed import launch
from efficientllm.distributed.totals import DeviceMemory, device_memory, own_joules
from efficientllm.distributed.world import World, current, is_first, summed
from efficientllm.errors import ParameterError

CPU = torch.device("cpu")


def world(rank: int, size: int = 2, local_rank: int | None = None) -> World:
    return World(rank, size, rank if local_rank is None else local_rank, "ddp")


def test_alone_is_first() -> None:
    assert current() is None
    assert is_first()


def test_shares_are_weighted_by_their_labels() -> None:
    inputs = torch.arange(8).view(4, 2)
    labels = torch.tensor([[1, 1], [1, IGNORED], [1, IGNORED], [IGNORED, IGNORED]])
    first, second = world(0).share(inputs, labels), world(1).share(inputs, labels)
    assert torch.equal(torch.cat([first[0], second[0]]), inputs)
    assert torch.equal(torch.cat([first[1], second[1]]), labels)
    # three of four labels are the first's: the mean over both of weight times mean loss is the mean over labels
    assert (first[2], second[2]) == (1.5, 0.5)
    losses = [2.0, 2.0, 5.0], [7.0]
    means = [sum(part) / len(part) for part in losses]
    assert (first[2] * means[0] + second[2] * means[1]) / 2 == pytest.approx(sum(losses[0] + losses[1]) / 4)


def test_a_share_without_labels() -> None:
    labels = torch.tensor([[1, 1], [IGNORED, IGNORED]])
    with pytest.raises(ParameterError, match="process 1 of 2 has no label in its share of a batch"):
        world(1).share(labels, labels)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(ParameterError, match="a batch of 3 sequences cannot be divided among 2 processes"):
        world(0).share(torch.ones(3, 2), torch.ones(3, 2))


def test_joules_of_gpus_add_up_and_those_of_a_shared_cpu_count_once() -> None:
    gpu = torch.device("cuda", 0)
    assert summed([own_joules(100.0, world(rank), gpu) for rank in range(2)]) == 200
    assert summed([own_joules(100.0, world(rank), CPU) for rank in range(2)]) == 100
    # two machines with two processes each: each machine's CPU counts once
    ranks = [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert summed([own_joules(100.0, world(rank, 4, local), CPU) for rank, local in ranks]) == 200
    assert summed([own_joules(100.0, world(0), gpu), own_joules(None, world(1), gpu)]) is None


def test_memory_is_that_of_the_fullest_device_and_the_mean() -> None:
    assert device_memory([4.0, 2.0, 3.0]) == DeviceMemory(highest=4.0, mean=3.0)
    assert device_memory([4.0, None]) is None


@pytest.mark.parametrize(
    ("strategy", "processes", "gpus", "expected"),
    [
        ("none", "auto", 4, 1), ("none", 3, 4, 1), ("ddp", "auto", 4, 4), ("fsdp", 2, 4, 2), ("ddp", "auto", 0, 1),
        ("ddp", 2, 0, 2),
    ],
)  # fmt: skip
def test_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, strategy: str, processes: str | int, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    settings = ParallelSettings.model_validate({"strategy": strategy, "processes": processes})
    assert launch.process_count(settings) == expected


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParameterError, match=r"parallel.processes is 4, and this machine has 2 GPUs"):
        launch.process_count(ParallelSettings(strategy="fsdp", processes=4))
