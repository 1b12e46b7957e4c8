"""Memory that a cell holds on its device."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.sampling import sampled

if TYPE_CHECKING:
    import torch

GIB = 1024**3
_INTERVAL_S = {"cuda": 0.001, "cpu": 0.005}
"""A training step on a GPU is over in tens of milliseconds, and holds now a little and now all of its activations."""


@dataclass
class MemoryReading:
    """Memory over one window, in GiB.

    Args:
        mean: Mean of the samples.
        peak: Highest value: the allocator's own on a GPU, the highest sample on a CPU.
        reserved: What the CUDA allocator holds from the driver; None on a CPU.
        process: All that the process holds on the device, with its libraries: NVML's figure at the window's end on a GPU,
            the highest resident set on a CPU; None where the driver does not tell.
        process_missing: Why `process` is None.
    """

    mean: float = 0.0
    peak: float = 0.0
    reserved: float | None = None
    process: float | None = None
    process_missing: str | None = None


class MemoryMeter:
    """Samples the process' memory; made before the model is loaded, so that the idle process is not counted.

    Args:
        device: Where the cell runs.
        nvml: The GPU's meters, for what the whole process holds there.
        read: Returns the bytes in use, instead of the device's own figure (for tests).
        interval_s: Seconds between two samples, instead of the device's own.
    """

    def __init__(
        self,
        device: "torch.device",
        nvml: NvmlDevice | None = None,
        *,
        read: Callable[[], int] | None = None,
        interval_s: float | None = None,
    ) -> None:
        self._device = device
        self._nvml = nvml
        self._interval_s = _INTERVAL_S[device.type] if interval_s is None else interval_s
        self._read = read or (_allocated(device) if device.type == "cuda" else _resident())
        self._baseline = self._read()

    @property
    def method(self) -> str:
        """How the figures are read."""
        if self._device.type == "cuda":
            return f"CUDA allocator, allocated bytes sampled every {1000 * self._interval_s:g} ms"
        return f"resident set above the idle process, sampled every {1000 * self._interval_s:g} ms"

    @contextlib.contextmanager
    def window(self) -> Iterator[MemoryReading]:
        """Samples while the block runs; the reading is filled when it ends.

        Raises:
            MeasurementError: The sensor failed while the block ran.
        """
        reading = MemoryReading()
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        first = self._read()
        with sampled("the memory sensor", self._read, self._interval_s) as samples:
            samples.add(first)
            yield reading
        reading.mean = (samples.mean - self._baseline) / GIB
        reading.peak = (samples.highest - self._baseline) / GIB
        if self._device.type == "cuda":
            import torch

            reading.peak = (torch.cuda.max_memory_allocated(self._device) - self._baseline) / GIB
            reading.reserved = torch.cuda.max_memory_reserved(self._device) / GIB
            held = None if self._nvml is None else self._nvml.process_bytes()
            reading.process = None if held is None else held / GIB
            if held is None:
                reading.process_missing = "NVML does not list this process, as is usual in containers"
        else:
            reading.process = samples.highest / GIB


def _allocated(device: "torch.device") -> Callable[[], int]:
    import torch

    # what torch.cuda.memory_allocated returns, without flattening all the statistics around it
    return lambda: int(torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["current"])


def _resident() -> Callable[[], int]:
    import psutil

    process = psutil.Process()
    return lambda: int(process.memory_info().rss)
