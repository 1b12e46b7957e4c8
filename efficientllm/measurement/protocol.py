"""The measuring protocol: warm-up, one memory pass, then repeated windows that time and energy share.

Time, energy and utilisation are taken over the same calls: the trackers read their counters a few times a second at most,
which does not disturb the clock (benchmarks/measuring_overhead.py), and joules over seconds then belong to the very work
that is reported. The clock runs around the calls alone, the energy window around both. Memory has a pass of its own, since
its sampler runs every few milliseconds. Everything is warmed up at the measured shapes before. Workloads that are
compared with each other take turns in random order, so that a drift of the machine meets them alike. docs/measurement.md
tells the whole protocol.
"""

import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from efficientllm.config.schema import MeasureSettings
from efficientllm.device import synchronize
from efficientllm.garbage import existing_objects_exempt
from efficientllm.measurement.energy import EnergyMeter, EnergyReading
from efficientllm.measurement.exclusive import BUSY_CORES
from efficientllm.measurement.memory import GIB, MemoryMeter, MemoryReading
from efficientllm.measurement.utilization import UtilizationMeter, UtilizationReading

_PREPARING_CALLS = 3
"""Calls by which all that is made at first use is there, an optimizer's state among it."""
_STABLE = 0.02
_STABLE_CALLS = 3
_LONGEST_WARM_UP = 5  # times warmup_seconds
_HOST_BOUND_PERCENT = 80.0


@dataclass(frozen=True)
class Workload:
    """Work that is repeated call by call.

    Args:
        step: One call; may return before the device has finished.
        tokens_per_call: Tokens trained on, or generated.
        samples_per_call: Sequences trained on, or requests served.
        device: Where it runs.
        record: Changes how the calls after it are launched, not what they compute. It comes after the memory pass: a CUDA
            graph keeps its memory to itself, and the allocator no longer sees what is in use when.
        unseen_bytes: Of graphs that are there already, the most memory that a call needs and the allocator does not see.
    """

    step: Callable[[], None]
    tokens_per_call: int
    samples_per_call: int
    device: torch.device
    record: Callable[[], None] | None = None
    unseen_bytes: int = 0


@dataclass(frozen=True)
class WindowResult:
    """One repeat.

    Args:
        calls: Calls in the window.
        seconds: From the first call's start until the device had finished the last.
        energy: Energy of the window, which holds the calls and the few milliseconds of starting and stopping the sensor.
        busy: Busy share of the processor.
        turn: Place of the window among all windows that were taken together.
        celsius: Temperature of the GPU at the window's end; None on a CPU.
        slowed: What slowed the GPU down at the window's end.
    """

    calls: int
    seconds: float
    energy: EnergyReading
    busy: UtilizationReading
    turn: int
    celsius: float | None
    slowed: list[str]


@dataclass(frozen=True)
class WorkloadResult:
    """All that was measured of one workload.

    Args:
        warmup_calls: Calls before the first window.
        warmup_seconds: What they took, compilation included.
        stable: Whether the last warm-up calls agreed within 2 %, or were no faster than those before.
        memory: The memory pass, a reading for each repeat.
        windows: The repeats, in the order in which they were taken.
        memory_method: How memory was read.
        busy_method: How the busy share was read.
        unseen_bytes: Memory of CUDA graphs that is in the peaks and not in the means.
    """

    warmup_calls: int
    warmup_seconds: float
    stable: bool
    memory: list[MemoryReading]
    windows: list[WindowResult]
    memory_method: str
    busy_method: str
    unseen_bytes: int = 0

    def seconds_per_call(self) -> list[float]:
        """Mean seconds per call of each repeat."""
        return [window.seconds / window.calls for window in self.windows]

    def joules_per_call(self) -> list[float]:
        """Joules per call of each repeat."""
        return [window.energy.joules / window.calls for window in self.windows]

    def doubts(self) -> str:
        """What made the windows doubtful that no spread of theirs would show, to be put behind a method; mostly nothing."""
        shares = [window.busy.percent for window in self.windows if window.busy.on_gpu]
        if shares and statistics.mean(shares) < _HOST_BOUND_PERCENT:
            return (
                f"; DOUBTFUL: the GPU was busy for less than {_HOST_BOUND_PERCENT:g} % of the time, so the host that launches its "
                "kernels sets the speed: a larger batch would show what the GPU can do"
            )
        taken = [share for window in self.windows if (share := window.busy.others_cores) is not None]
        if max(taken, default=0.0) <= BUSY_CORES:
            return ""
        return f"; DOUBTFUL: other programs kept up to {max(taken):.1f} of the cores busy"


def measure_workloads(
    workloads: Sequence[Workload],
    settings: MeasureSettings,
    meter: EnergyMeter,
    memory: MemoryMeter,
    *,
    window_calls: int,
    seed: int,
) -> list[WorkloadResult]:
    """Measures workloads under the protocol; each repeat takes a window of every one of them, in random order.

    Args:
        workloads: What is measured.
        settings: Lengths and repeats.
        meter: The process' energy meter.
        memory: The process' memory meter, whose baseline is the idle process.
        window_calls: Fewest calls in a window.
        seed: Seed of the order.

    Returns:
        One result for each workload.

    Raises:
        MeasurementError: A sensor failed, or no energy was counted.
    """
    warm, held = [], []
    for workload in workloads:
        if workload.record is None:
            warm.append(_warm_up(workload, settings))
        else:
            for _ in range(_PREPARING_CALLS):
                workload.step()
            synchronize(workload.device)
        with existing_objects_exempt():  # a pause of the host would count whatever is allocated then several times over
            held.append([_memory(workload, settings, memory) for _ in range(settings.repeats)])
        if workload.record is not None:
            workload.record()
            warm.append(_warm_up(workload, settings))
    utilization = UtilizationMeter(meter.nvml)
    windows: list[list[WindowResult]] = [[] for _ in workloads]
    with existing_objects_exempt():
        for turn, position in enumerate(_order(len(workloads), settings.repeats, seed)):
            if turn:
                time.sleep(settings.cooldown_seconds)
            windows[position].append(
                _window(workloads[position], settings.window_seconds, window_calls, meter, utilization, turn)
            )
    return [
        WorkloadResult(*warmed, readings, taken, memory.method, utilization.method, workload.unseen_bytes)
        for workload, warmed, readings, taken in zip(workloads, warm, held, windows, strict=True)
    ]


def _memory(workload: Workload, settings: MeasureSettings, memory: MemoryMeter) -> MemoryReading:
    """Takes a repeat's memory pass: calls for a while, at least one.

    The device is waited for after the sampling. It may be many steps behind the host, which has then freed whatever those
    steps need: the wait would count as time with next to nothing allocated, a large part of a pass of short steps.
    """
    started = time.perf_counter()
    with memory.window() as reading:
        workload.step()
        while time.perf_counter() - started < settings.memory_seconds:
            workload.step()
    synchronize(workload.device)
    reading.peak += workload.unseen_bytes / GIB
    return reading


def _order(workloads: int, repeats: int, seed: int) -> list[int]:
    """Positions of the workloads, each once per repeat, shuffled within the repeat."""
    generator = random.Random(seed)
    return [position for _ in range(repeats) for position in generator.sample(range(workloads), workloads)]


def _window(
    workload: Workload, seconds: float, least_calls: int, meter: EnergyMeter, utilization: UtilizationMeter, turn: int
) -> WindowResult:
    nvml = meter.nvml
    with meter.window() as energy, utilization.window() as busy:
        calls, taken = _run_for(workload, seconds, least_calls)
        slowed = [] if nvml is None else nvml.slowed()
    return WindowResult(calls, taken, energy, busy, turn, None if nvml is None else nvml.celsius(), slowed)


def _warm_up(workload: Workload, settings: MeasureSettings) -> tuple[int, float, bool]:
    """Calls until enough calls and seconds have passed and the work gets no faster, within a limit.

    That is where the last calls agree, or where none of them is faster than all those before: on a shared machine calls
    differ by more than any agreement asks for, warm or not.

    The first call's seconds do not count, which are mostly compilation: after it the device is as cold as before.
    """
    started, times = time.perf_counter(), list[float]()
    for calls in itertools.count(1):
        begun = time.perf_counter()
        workload.step()
        synchronize(workload.device)
        now = time.perf_counter()
        times.append(now - begun)
        last, before, warming = times[-_STABLE_CALLS:], times[:-_STABLE_CALLS], now - started - times[0]
        agree = len(last) == _STABLE_CALLS and max(last) <= min(last) * (1 + _STABLE)
        stable = agree or (len(before) >= _STABLE_CALLS and min(last) >= min(before) * (1 - _STABLE))
        enough = calls >= settings.warmup_calls and warming >= settings.warmup_seconds
        if enough and (stable or warming >= _LONGEST_WARM_UP * settings.warmup_seconds):
            return calls, now - started, stable
    raise AssertionError("unreachable")


def _run_for(workload: Workload, seconds: float, least_calls: int) -> tuple[int, float]:
    """Calls for a while, and returns how often and for how long.

    The host waits for an earlier call, or it would run ahead of the clock; not for the last one before the end, or the device
    would be idle until the host has prepared the next.
    """
    launched = deque[torch.cuda.Event]()
    started, calls = time.perf_counter(), 0
    while calls < least_calls or time.perf_counter() - started < seconds:
        workload.step()
        calls += 1
        if workload.device.type == "cuda":
            launched.append(torch.cuda.Event())
            launched[-1].record()
            if len(launched) == least_calls:
                launched.popleft().synchronize()
    synchronize(workload.device)
    return calls, time.perf_counter() - started
