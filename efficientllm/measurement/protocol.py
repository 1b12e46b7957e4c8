"""The measuring protocol: warm-up, one memory pass, then repeated windows that time and energy share.

Time, energy and utilisation are taken over the same calls of the same window: the tracker reads its counters once a
second at most and so does not disturb the clock, and joules over seconds then belong to the very work that is reported.
Memory has a pass of its own, since its sampler runs every few milliseconds. Everything is warmed up at the measured
shapes before. (MLPerf Power asks for windows of a minute and more; the window lengths are parameters of the profile.)
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from efficientllm.config.schema import MeasureSettings
from efficientllm.errors import MeasurementError
from efficientllm.measurement.energy import EnergyMeter, EnergyReading
from efficientllm.measurement.memory import MemoryMeter, MemoryReading
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.utilization import UtilizationMeter

_STABLE = 0.02
_STABLE_CALLS = 3
_LONGEST_WARM_UP = 5  # times warmup_seconds


@dataclass(frozen=True)
class Workload:
    """Work that is repeated call by call.

    Args:
        step: One call; may return before the device has finished.
        tokens_per_call: Tokens trained on, or generated.
        samples_per_call: Sequences trained on, or requests served.
        device: Where it runs.
    """

    step: Callable[[], None]
    tokens_per_call: int
    samples_per_call: int
    device: torch.device


@dataclass(frozen=True)
class WindowResult:
    """One repeat.

    Args:
        calls: Calls in the window.
        energy: Length and energy of the window.
        busy_percent: Busy share of the processor.
    """

    calls: int
    energy: EnergyReading
    busy_percent: float


@dataclass(frozen=True)
class WorkloadResult:
    """All that was measured of one workload.

    Args:
        warmup_calls: Calls before the first window.
        stable: Whether the last warm-up calls agreed within 2 %.
        memory: The memory pass.
        windows: The repeats, in the order in which they were taken.
        memory_method: How memory was read.
        busy_method: How the busy share was read.
    """

    warmup_calls: int
    stable: bool
    memory: MemoryReading
    windows: list[WindowResult]
    memory_method: str
    busy_method: str

    def seconds_per_call(self) -> list[float]:
        """Mean seconds per call of each repeat."""
        return [window.energy.seconds / window.calls for window in self.windows]

    def joules_per_call(self) -> list[float]:
        """Joules per call of each repeat."""
        return [window.energy.joules / window.calls for window in self.windows]


def measure_workload(
    workload: Workload, settings: MeasureSettings, meter: EnergyMeter, memory: MemoryMeter
) -> WorkloadResult:
    """Measures a workload under the protocol.

    Args:
        workload: What is measured.
        settings: Lengths and repeats.
        meter: The process' energy meter.
        memory: The process' memory meter, whose baseline is the idle process.

    Raises:
        MeasurementError: A sensor failed, or no energy was counted.
    """
    warmup_calls, stable = _warm_up(workload, settings)
    with memory.window() as held:
        for _ in range(settings.memory_calls):
            workload.step()
        synchronize(workload.device)
    utilization = UtilizationMeter(meter.nvml)
    windows = []
    for repeat in range(settings.repeats):
        if repeat:
            time.sleep(settings.cooldown_seconds)
        with meter.window() as energy, utilization.window() as busy:
            calls = _run_for(workload, settings.window_seconds, settings.window_calls)
        windows.append(WindowResult(calls, energy, busy.percent))
    return WorkloadResult(warmup_calls, stable, held, windows, memory.method, utilization.method)


def idle_watts(seconds: float, meter: EnergyMeter) -> float | None:
    """Mean power while this process does nothing; None where the meter counts nothing at idle."""
    try:
        with meter.window() as reading:
            time.sleep(seconds)
    except MeasurementError:
        return None
    return reading.watts


def check_exclusive(nvml: NvmlDevice | None, *, allow_shared: bool) -> list[int]:
    """Refuses a GPU that others compute on.

    Args:
        nvml: The GPU's meters; on a CPU there is nothing to check.
        allow_shared: Measure all the same; the record then says so.

    Returns:
        Process ids of the others.

    Raises:
        MeasurementError: Others use the device, and that is not allowed.
    """
    others = [] if nvml is None else nvml.other_processes()
    if others and not allow_shared:
        raise MeasurementError(
            f"other processes compute on the GPU ({', '.join(map(str, others))}): end them, or set measure.allow_shared to "
            "true, which the record will say"
        )
    return others


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm_up(workload: Workload, settings: MeasureSettings) -> tuple[int, bool]:
    """Calls until enough calls and seconds have passed and the last calls agree, within a limit."""
    started, times = time.perf_counter(), list[float]()
    for calls in itertools.count(1):
        before = time.perf_counter()
        workload.step()
        synchronize(workload.device)
        now = time.perf_counter()
        times.append(now - before)
        last = times[-_STABLE_CALLS:]
        stable = len(last) == _STABLE_CALLS and max(last) <= min(last) * (1 + _STABLE)
        enough = calls >= settings.warmup_calls and now - started >= settings.warmup_seconds
        if enough and (stable or now - started >= _LONGEST_WARM_UP * settings.warmup_seconds):
            return calls, stable
    raise AssertionError("unreachable")


def _run_for(workload: Workload, seconds: float, least_calls: int) -> int:
    """Calls for a while; the device is waited for at the end only, or every few calls, so that it is never idle."""
    started, calls = time.perf_counter(), 0
    while calls < least_calls or time.perf_counter() - started < seconds:
        workload.step()
        calls += 1
        if calls % least_calls == 0:
            synchronize(workload.device)  # or the host would run ahead of the clock
    synchronize(workload.device)
    return calls
