"""What recording does on a GPU, with CUDA's own calls replaced: the order, and what happens where a step cannot be recorded."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from efficientllm.models.cuda_graphs import RecordingError, record

DEVICE = torch.device("cuda")


class FakeCuda:
    """CUDA's calls; `mode` is the reaction to a wait, and `recording` the graph that kernels go to."""

    def __init__(self) -> None:
        self.mode: int | str = 0
        self.recording: list[Callable[[], None]] | None = None
        self.broken = False

    def launch(self, kernel: Callable[[], None]) -> None:
        if self.recording is None:
            kernel()
        else:
            self.recording.append(kernel)

    def wait(self) -> None:
        if self.recording is not None:
            self.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    class Graph:
        def __init__(self) -> None:
            self.kernels: list[Callable[[], None]] = []

        def replay(self) -> None:
            for kernel in self.kernels:
                kernel()

    @contextlib.contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        fake.recording = graph.kernels
        try:
            yield
        finally:
            fake.recording = None
            if fake.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: fake.mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(fake, "mode", mode))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return fake


def test_replays_do_what_the_steps_did(cuda: FakeCuda) -> None:
    done: list[int] = []
    replays = record([lambda i=i: cuda.launch(lambda: done.append(i)) for i in range(4)], DEVICE)  # type: ignore[misc]
    done.clear()
    for replay in replays:
        replay()
    assert done == [0, 1, 2, 3]
    assert cuda.mode == 0


def test_a_step_that_waits_is_found_before_anything_is_recorded(cuda: FakeCuda) -> None:
    with pytest.raises(
        RecordingError, match=r"the host waits for the device within a step: called a synchronizing CUDA"
    ):
        record([lambda: None, lambda: None, cuda.wait], DEVICE)
    assert not cuda.broken
    assert cuda.mode == 0


def test_a_wait_at_first_use_only_is_none(cuda: FakeCuda) -> None:
    prepared: list[bool] = []

    def step() -> None:
        if not prepared:
            cuda.wait()
            prepared.append(True)

    assert len(record([step, step], DEVICE)) == 2


def test_a_broken_recording_names_its_cause_rather_than_what_followed(cuda: FakeCuda) -> None:
    def hidden_wait() -> None:
        if cuda.recording is not None:  # one that PyTorch does not report
            cuda.wait()

    with pytest.raises(
        RecordingError, match=r"a step cannot be recorded: CUDA error: operation not permitted when stream"
    ):
        record([lambda: None, hidden_wait], DEVICE)


def test_lack_of_memory_is_no_reason_to_go_on_without_graphs(cuda: FakeCuda) -> None:
    def step() -> None:
        if cuda.mode == "error":
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        record([step, step], DEVICE)
    assert cuda.mode == 0
