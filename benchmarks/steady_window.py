"""A window of steady training steps, over which time, energy and memory are taken."""

import time

import torch

from efficientllm.device import synchronize
from efficientllm.distributed.totals import peak_gib
from efficientllm.measurement.nvml import NvmlDevice

_STEPS_BETWEEN_WAITS = 3  # so that the device is never idle, and the host does not run ahead of the clock


class SteadyWindow:
    """Lets warm-up steps pass, then takes time, energy and memory until the window is long enough.

    Args:
        warmup: Steps before the window.
        seconds: Its shortest length.
        device: Where the steps run.
        nvml: The GPU's meters, where there is one.
    """

    def __init__(self, warmup: int, seconds: float, device: torch.device, nvml: NvmlDevice | None) -> None:
        self._warmup, self._least, self._device, self._nvml = warmup, seconds, device, nvml
        self._created = time.perf_counter()
        self._steps = -warmup
        self._started = 0.0
        self._counter: float | None = None
        self.values: dict[str, float | None] = {}

    def is_full(self) -> bool:
        """To be asked after every step; True once the figures are in `values`."""
        self._steps += 1
        if self._steps == 0:
            synchronize(self._device)
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            self._counter = self._joules()
            self._started = time.perf_counter()
        if self._steps <= 0 or self._steps % _STEPS_BETWEEN_WAITS:
            return False
        synchronize(self._device)
        seconds = time.perf_counter() - self._started
        if seconds < self._least:
            return False
        after, before = self._joules(), self._counter
        joules = None if before is None or after is None or after <= before else after - before
        self.values = {
            "steps": self._steps,
            "step_s": seconds / self._steps,
            "watts": joules and joules / seconds,
            "joules_per_step": joules and joules / self._steps,
            "peak_gib": peak_gib(self._device),
            "warmup_s": self._started - self._created,
        }
        return True

    def _joules(self) -> float | None:
        return None if self._nvml is None else self._nvml.joules()
