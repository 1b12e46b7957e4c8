"""Whether a GPU's energy counter can be trusted: under load it must rise, and agree with integrated power."""

import itertools
import time
from typing import TYPE_CHECKING, Any

from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import NvmlDevice

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.10
_SECONDS = 2.0
_WARM_UP_S = 1.5  # NVML's power is an average over the last second on recent cards


def energy_counter_works(device: "torch.device") -> dict[str, Any]:
    """Loads the GPU for a few seconds and compares its two energy sensors.

    Args:
        device: The CUDA device.

    Returns:
        Driver, power limit, MIG mode, and `energy_counter` with what was found; no figure that changes from run to run.
    """
    facts: dict[str, Any] = {"driver": None, "power_limit_w": None, "mig": None}
    try:
        nvml = NvmlDevice.of(device)
        facts = nvml.facts()
        rate = _joules_and_integral(nvml, device)
    except MeasurementError as error:
        failed = {"works": False, "agrees_with_power": False, "reason": str(error)}
        return facts | {"energy_counter": failed}
    return facts | {"energy_counter": judge(*rate)}


def judge(counted: float | None, integrated: float) -> dict[str, Any]:
    """Compares the counter's joules with the integral of power.

    Args:
        counted: Difference of the counter, None where the device has none.
        integrated: Integral of the sampled power over the same time.
    """
    if counted is None or counted <= 0:
        fault = "the device has no energy counter" if counted is None else "the energy counter does not rise under load"
        return {"works": False, "agrees_with_power": False, "reason": fault}
    agrees = abs(counted / integrated - 1) <= TOLERANCE
    reason = None if agrees else f"it differs from integrated power by more than {TOLERANCE:.0%}"
    return {"works": True, "agrees_with_power": agrees, "reason": reason}


def _joules_and_integral(nvml: NvmlDevice, device: "torch.device") -> tuple[float | None, float]:
    import torch

    matrix = torch.randn(4096, 4096, device=device, dtype=torch.float16)

    def load(seconds: float, watts: list[tuple[float, float]]) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(20):
                torch.mm(matrix, matrix)
            torch.cuda.synchronize(device)
            watts.append((time.perf_counter(), nvml.watts()))

    load(_WARM_UP_S, [])
    samples = [(time.perf_counter(), nvml.watts())]
    before = nvml.joules()
    load(_SECONDS, samples)
    after = nvml.joules()
    integral = sum(
        (later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in itertools.pairwise(samples)
    )
    return None if before is None or after is None else after - before, integral
