"""How busy the processor is, and how much of its arithmetic the model uses."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from efficientllm.device import allowed_cores
from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import NvmlDevice

_INTERVAL_S = 0.1

# Dense peak in TFLOP/s (no sparsity) by device name and type, most specific name first; from NVIDIA's data sheets.
# float32 is the rate of the CUDA cores, since PyTorch's matrix products do not use TF32 unless told to.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
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


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak of a device in FLOP/s, or None where it is not known: then no utilisation can be given.

    Args:
        device_name: As the driver names it.
        dtype: `bfloat16`, `float16` or `float32`.
    """
    words = device_name.replace("-", " ").split()
    for name, peaks in _PEAKS:
        if all(word in words for word in name.split()) and dtype in peaks:
            return peaks[dtype] * 1e12
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
    """Busy share of the processor over one window, in percent."""

    percent: float = 0.0


class UtilizationMeter:
    """Busy share: of the GPU by NVML, or of the allowed CPU cores by this process' CPU time.

    Args:
        nvml: The GPU's meters, None where the cell runs on the CPU.
    """

    def __init__(self, nvml: NvmlDevice | None) -> None:
        self._nvml = nvml

    @property
    def method(self) -> str:
        """How the figure is read."""
        if self._nvml is not None:
            return "NVML busy share, sampled every 100 ms"
        return f"CPU time over wall time and {allowed_cores():g} allowed cores"

    @contextlib.contextmanager
    def window(self) -> Iterator[UtilizationReading]:
        """Measures the block; the reading is filled when it ends."""
        reading = UtilizationReading()
        if self._nvml is not None:
            with self._sampled(self._nvml, reading):
                yield reading
            return
        busy, started = time.process_time(), time.perf_counter()
        yield reading
        seconds = time.perf_counter() - started
        reading.percent = 100 * (time.process_time() - busy) / (seconds * allowed_cores())

    @contextlib.contextmanager
    def _sampled(self, nvml: NvmlDevice, reading: UtilizationReading) -> Iterator[None]:
        samples: list[float] = []
        stop, failures = threading.Event(), list[Exception]()

        def sample() -> None:
            while not stop.wait(_INTERVAL_S):
                try:
                    samples.append(nvml.busy_percent())
                except Exception as error:  # noqa: BLE001 - handed to the measuring thread, which raises it
                    failures.append(error)
                    return

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
        if failures or not samples:
            cause = failures[0] if failures else "the window is shorter than a sample"
            raise MeasurementError(f"the GPU's busy share could not be read: {cause}")
        reading.percent = sum(samples) / len(samples)
