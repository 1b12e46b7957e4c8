"""Whether a GPU's energy counter can be trusted: under load it must rise, and agree with integrated power."""

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import NvmlDevice

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.10
_SECONDS = 2.0
_WARM_UP_S = 1.5  # NVML's power is an average over the last second on recent cards


def energy_counter_works(device: "torch.device", load: Callable[[], None] | None = None) -> dict[str, Any]:
    """Loads the GPU for a few seconds and compares its two energy sensors.

    Args:
        device: The CUDA device.
        load: A few milliseconds of work that are waited for, instead of matrix products (for tests).

    Returns:
        Driver, power limit, MIG mode, and `energy_counter` with what was found; no figure that changes from run to run.
    """
    facts: dict[str, Any] = {"driver": None, "power_limit_w": None, "mig": None}
    try:
        nvml = NvmlDevice.of(device)
        facts = nvml.facts()
        if (fault := nvml.counter_fault()) is not None:
            verdict = judge(None, 0.0)
            return facts | {"energy_counter": verdict | {"reason": f"{verdict['reason']} ({fault})"}}
        counted, integrated = _joules_and_integral(nvml, load or _matrix_products(device))
    except MeasurementError as error:
        failed = {"works": False, "agrees_with_power": False, "reason": str(error)}
        return facts | {"energy_counter": failed}
    return facts | {"energy_counter": judge(counted, integrated)}


def judge(counted: float | None, integrated: float) -> dict[str, Any]:
    """Compares the counter's joules with the integral of power.

    Args:
        counted: Difference of the counter, None where the device has none.
        integrated: Integral of the sampled power over the same time.
    """
    if counted is None or counted <= 0:
        fault = (
            "the energy counter cannot be read" if counted is None else "the energy counter does not rise under load"
        )
        return {"works": False, "agrees_with_power": False, "reason": fault}
    agrees = abs(counted / integrated - 1) <= TOLERANCE
    reason = None if agrees else f"it differs from integrated power by more than {TOLERANCE:.0%}"
    return {"works": True, "agrees_with_power": agrees, "reason": reason}


def _matrix_products(device: "torch.device") -> Callable[[], None]:
    import torch

    matrix = torch.randn(4096, 4096, device=device, dtype=torch.float16)

    def load() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize(device)

    return load


def _joules_and_integral(nvml: NvmlDevice, load: Callable[[], None]) -> tuple[float | None, float]:
    def run(seconds: float) -> list[tuple[float, float]]:
        end, watts = time.perf_counter() + seconds, list[tuple[float, float]]()
        while time.perf_counter() < end:
            load()
            watts.append((time.perf_counter(), nvml.watts()))
        return watts

    run(_WARM_UP_S)
    first = (time.perf_counter(), nvml.watts())
    before = nvml.joules()
    samples = [first, *run(_SECONDS)]
    after = nvml.joules()
    integral = sum(
        (later - earlier) * (one + other) / 2 for (earlier, one), (later, other) in itertools.pairwise(samples)
    )
    return None if before is None or after is None else after - before, integral
