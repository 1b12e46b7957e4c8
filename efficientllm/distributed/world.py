"""The processes that train one model together, and what they tell each other.

Every process computes the whole batch's token numbers and takes its share of the rows, so that data order and loss are
those of one process. Nothing is exchanged as pickled objects: numbers travel as tensors, text as bytes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from efficientllm.data.packing import IGNORED
from efficientllm.device import allowed_cores
from efficientllm.errors import ParameterError

Strategy = Literal["ddp", "fsdp"]

_SILENCE = timedelta(minutes=30)
"""How long one process waits for another: a first compilation may take minutes."""


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Args:
        rank: Its number, from 0.
        size: Processes in all.
        local_rank: Its number on its machine.
        strategy: What the processes share: gradients (`ddp`), or weights and optimizer state too (`fsdp`).
    """

    rank: int
    size: int
    local_rank: int
    strategy: Strategy

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, inputs_bt: torch.Tensor, labels_bt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Takes this process' rows of a batch.

        Args:
            inputs_bt: Token ids `[B, T]` of the whole batch.
            labels_bt: Labels `[B, T]`, `IGNORED` where there is no loss.

        Returns:
            Its inputs and labels, and the weight of its mean loss: the mean over processes of the weighted losses is the
            mean over all labels of the whole batch, however unevenly they lie.

        Raises:
            ParameterError: The batch cannot be divided by the number of processes.
        """
        if len(inputs_bt) % self.size:
            raise ParameterError(
                f"a batch of {len(inputs_bt)} sequences cannot be divided among {self.size} processes: change "
                "training.batch_size or parallel.processes"
            )
        rows = len(inputs_bt) // self.size
        own = slice(self.rank * rows, (self.rank + 1) * rows)
        labels = labels_bt[own]
        kept, all_kept = int((labels != IGNORED).sum()), int((labels_bt != IGNORED).sum())
        if not kept:
            raise ParameterError(
                f"process {self.rank} of {self.size} has no label in its share of a batch: use fewer processes"
            )
        return inputs_bt[own], labels, kept * self.size / all_kept

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over all processes."""
        summed = value.clone()
        dist.all_reduce(summed)
        return summed / self.size

    def gathered(self, value: float | None, device: torch.device) -> list[float | None]:
        """One number of each process, in the order of their ranks; None travels as NaN."""
        own = torch.tensor([float("nan") if value is None else value], dtype=torch.float64, device=device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [None if number != number else number for number in (float(tensor) for tensor in every)]

    def decided(self, choice: bool, device: torch.device) -> bool:
        """The first process' choice, for what depends on a clock."""
        flag = torch.tensor([int(choice)], device=device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def noted_by_any(self, noted: Callable[[], bool], device: torch.device) -> Callable[[], bool]:
        """Whether any process has noted something, to be asked by all of them once per step.

        The answer is that of the step before, which a GPU has by then: so the host may run ahead of it by a step.
        """
        before = torch.zeros(1, dtype=torch.int64)
        copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

        def noted_before() -> bool:
            nonlocal before
            if copied is not None:
                copied.synchronize()
            answer = bool(before)
            flag = torch.tensor([int(noted())], device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            before = flag.to("cpu", non_blocking=True)
            if copied is not None:
                copied.record()
            return answer

        return noted_before

    def from_first(self, content: bytes, device: torch.device) -> bytes:
        """The first process' bytes; what the others pass is left aside."""
        length = torch.tensor([len(content)], device=device)
        dist.broadcast(length, 0)
        payload = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first and content:
            payload = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return bytes(self.tensor_from_first(payload, device).numpy())

    def tensor_from_first(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The first process' tensor, in host memory; the others pass one of its shape and type."""
        sent = tensor.to(device)
        dist.broadcast(sent, 0)
        return sent.cpu()


_world: World | None = None


def current() -> World | None:
    """The world that this process has joined; None where it trains alone."""
    return _world


def is_first() -> bool:
    """Whether this process writes files and shows progress: the first one, or the only one."""
    return _world is None or _world.is_first


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun (or `launch`) has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextlib.contextmanager
def joined(strategy: Strategy) -> Iterator[World]:
    """Joins the processes that torchrun has started, and leaves them again.

    Raises:
        RuntimeError: The others did not come up.
    """
    global _world
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(allowed_cores()) // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_SILENCE)
    _world = World(rank, size, local_rank, strategy)
    try:
        yield _world
    finally:
        _world = None
        dist.destroy_process_group()


def summed(values: Sequence[float | None]) -> float | None:
    """Sum of what every process has counted; None where one does not know."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
