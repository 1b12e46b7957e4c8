"""Memory that a cell holds on its device."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientllm.errors import MeasurementError

if TYPE_CHECKING:
    import torch

GIB = 1024**3
_INTERVAL_S = 0.005


@dataclass
class MemoryReading:
    """Memory over one window, in GiB.

    Args:
        mean: Mean of the samples.
        peak: Highest value: the allocator's own on a GPU, the highest sample on a CPU.
        reserved: What the CUDA allocator holds from the driver; None on a CPU.
    """

    mean: float = 0.0
    peak: float = 0.0
    reserved: float | None = None


class MemoryMeter:
    """Samples the process' memory; made before the model is loaded, so that the idle process is not counted.

    Args:
        device: Where the cell runs.
        read: Returns the bytes in use, instead of the device's own figure (for tests).
    """

    def __init__(self, device: "torch.device", read: Callable[[], int] | None = None) -> None:
        self._device = device
        self._read = read or (_allocated(device) if device.type == "cuda" else _resident())
        self._baseline = self._read()

    @property
    def method(self) -> str:
        """How the figures are read."""
        if self._device.type == "cuda":
            return "CUDA allocator, allocated bytes sampled every 5 ms"
        return "resident set above the idle process, sampled every 5 ms"

    @contextlib.contextmanager
    def window(self) -> Iterator[MemoryReading]:
        """Samples while the block runs; the reading is filled when it ends.

        Raises:
            MeasurementError: The sensor failed while the block ran.
        """
        reading, samples, stop = MemoryReading(), [self._read()], threading.Event()
        failures: list[OSError] = []

        def sample() -> None:
            while not stop.wait(_INTERVAL_S):
                try:
                    samples.append(self._read())
                except OSError as error:
                    failures.append(error)
                    return

        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield reading
        finally:
            stop.set()
            sampler.join()
        if failures:
            raise MeasurementError(f"the memory sensor failed in the middle of a window ({failures[0]})")
        reading.mean = (sum(samples) / len(samples) - self._baseline) / GIB
        reading.peak = (max(samples) - self._baseline) / GIB
        if self._device.type == "cuda":
            import torch

            reading.peak = (torch.cuda.max_memory_allocated(self._device) - self._baseline) / GIB
            reading.reserved = torch.cuda.max_memory_reserved(self._device) / GIB


def _allocated(device: "torch.device") -> Callable[[], int]:
    import torch

    return lambda: torch.cuda.memory_allocated(device)


def _resident() -> Callable[[], int]:
    import psutil

    process = psutil.Process()
    return lambda: int(process.memory_info().rss)
