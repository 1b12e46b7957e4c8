"""How busy the processor is, and how much of its arithmetic the model uses."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from efficientllm.device import allowed_cores
from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.sampling import Samples, sampled

_INTERVAL_S = 0.1
_LAG_S = 0.25
"""NVML's busy share is that of its last period, up to a sixth of a second: at first that reaches back to before the window,
when the GPU was idle. Two such samples of fifteen would explain the 86 % that an H100 showed in windows that followed a pause."""

# Dense peak in TFLOP/s (no sparsity) by device name and type, most specific name first; from NVIDIA's data sheets.
# float32 is the rate of the CUDA cores, since PyTorch's matrix products do not use TF32 unless told to.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200 NVL", {"bfloat16": 835.5, "float16": 835.5, "float32": 60.0}),
    ("H200", {"bfloat16": 989.4, "float16": 989.4, "float32": 66.9}),
    ("H100 PCIe", {"bfloat16": 756.5, "float16": 756.5, "float32": 51.2}),
    ("H100 NVL", {"bfloat16": 835.5, "float16": 835.5, "float32": 60.0}),
    ("H100", {"bfloat16": 989.4, "float16": 989.4, "float32": 66.9}),
    ("A100", {"bfloat16": 312.0, "float16": 312.0, "float32": 19.5}),
    ("L40S", {"bfloat16": 362.1, "float16": 362.1, "float32": 91.6}),
    ("L4", {"bfloat16": 121.0, "float16": 121.0, "float32": 30.3}),
    ("A10G", {"bfloat16": 70.0, "float16": 70.0, "float32": 31.5}),
    ("A10", {"bfloat16": 125.0, "float16": 125.0, "float32": 31.2}),
    ("T4", {"float16": 65.0, "float32": 8.1}),
    ("RTX 4090", {"bfloat16": 165.2, "float16": 165.2, "float32": 82.6}),
    ("RTX 3090", {"bfloat16": 71.0, "float16": 71.0, "float32": 35.6}),
)


_OTHER_MODELS = {"NVL", "Laptop", "Mobile", "Ti", "D", "SUPER", "MIG"}
"""Words that make another device, of another peak, of a name that they follow."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak of a device in FLOP/s, or None where it is not known: then no utilisation can be given.

    Args:
        device_name: As the driver names it.
        dtype: `bfloat16`, `float16` or `float32`.
    """
    words = device_name.replace("-", " ").split()
    for name, peaks in _PEAKS:
        if set(name.split()) <= set(words):
            other = _OTHER_MODELS & set(words) - set(name.split())
            return None if other or dtype not in peaks else peaks[dtype] * 1e12
    return None


def model_flops_utilization(flops_per_second: float, peak: float) -> float:
    """Share of the dense peak in percent.

    Raises:
        MeasurementError: It is above 100 %: the peak, the operation count or the clock is wrong.
    """
    share = 100 * flops_per_second / peak
    if not 0 < share < 100:
        raise MeasurementError(f"a model FLOPs utilization of {share:.1f} % cannot be: check the peak of this device")
    return share


@dataclass
class UtilizationReading:
    """Busy share of the processor over one window.

    Args:
        percent: Busy share in percent.
        others_cores: Cores' worth of time that other processes took from the allowed cores; None on a GPU, and where the
            system does not tell.
        on_gpu: Whether it is a GPU's share.
        sm_clock_mhz: Mean clock of a GPU's multiprocessors; None on a CPU, and where the card does not tell.
    """

    percent: float = 0.0
    others_cores: float | None = None
    on_gpu: bool = False
    sm_clock_mhz: float | None = None


class UtilizationMeter:
    """Busy share: of the GPU by NVML, or of the allowed CPU cores by this process' CPU time.

    Args:
        nvml: The GPU's meters, None where the cell runs on the CPU.
        interval_s: Seconds between two samples of a GPU.
    """

    def __init__(self, nvml: NvmlDevice | None, interval_s: float = _INTERVAL_S) -> None:
        self._nvml = nvml
        self._interval_s = interval_s

    @property
    def method(self) -> str:
        """How the figure is read."""
        if self._nvml is not None:
            start = f"from {1000 * _LAG_S:g} ms on in windows longer than that"
            return f"NVML busy share, sampled every {1000 * self._interval_s:g} ms, {start}"
        return f"CPU time over wall time and {allowed_cores():g} allowed cores"

    @contextlib.contextmanager
    def window(self) -> Iterator[UtilizationReading]:
        """Measures the block; the reading is filled when it ends.

        Raises:
            MeasurementError: The sensor failed, or the block was shorter than a sample.
        """
        reading = UtilizationReading(on_gpu=self._nvml is not None)
        if self._nvml is not None:
            settled, clocks = Samples(), Samples()
            with sampled("the GPU's busy share", _busy_share(self._nvml, settled, clocks), self._interval_s) as samples:
                yield reading
            if not samples.count:
                raise MeasurementError("the GPU's busy share could not be read: the window is shorter than a sample")
            reading.percent = (settled if settled.count else samples).mean
            reading.sm_clock_mhz = clocks.mean if clocks.count else None
            return
        everyone, own, started = _busy_seconds(), time.process_time(), time.perf_counter()
        yield reading
        seconds, busy, after = time.perf_counter() - started, time.process_time() - own, _busy_seconds()
        reading.percent = 100 * busy / (seconds * allowed_cores())
        if everyone is not None and after is not None:
            # the system counts in hundredths of a second, this process more finely
            reading.others_cores = max(0.0, after - everyone - busy) / seconds


def _busy_share(nvml: NvmlDevice, settled: Samples, clocks: Samples) -> Callable[[], float]:
    """Reads the busy share, and on the way keeps those that are of the window alone, and the clock."""
    begun = time.perf_counter()

    def read() -> float:
        percent, clock = nvml.busy_percent(), nvml.sm_clock_mhz()
        if time.perf_counter() - begun >= _LAG_S:
            settled.add(percent)
        if clock is not None:
            clocks.add(clock)
        return percent

    return read


def _busy_seconds() -> float | None:
    """Seconds that all processes have taken from the cores that this one may use; other virtual machines' count too."""
    import psutil

    if not hasattr(os, "sched_getaffinity"):
        return None
    times = psutil.cpu_times(percpu=True)
    allowed = [times[core] for core in os.sched_getaffinity(0) if core < len(times)]
    return float(sum(core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in allowed))
