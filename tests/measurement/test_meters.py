"""Memory, utilisation, statistics and the protocol, with clocks and sensors of our own."""

import dataclasses
import gc
import itertools
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count, cycle, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllm import metrics
from efficientllm.config.schema import MeasureSettings
from efficientllm.errors import ArtifactError, MeasurementError
from efficientllm.measurement import protocol
from efficientllm.measurement.energy import EnergyReading
from efficientllm.measurement.exclusive import check_exclusive, idle
from efficientllm.measurement.memory import GIB, MemoryMeter, MemoryReading
from efficientllm.measurement.protocol import WindowResult, Workload, WorkloadResult, measure_workloads
from efficientllm.measurement.safetensors_header import tensor_bytes
from efficientllm.measurement.selftest import judge
from efficientllm.measurement.statistics import bootstrap_interval, summarize, variation
from efficientllm.measurement.utilization import (
    UtilizationMeter,
    UtilizationReading,
    model_flops_utilization,
    peak_flops,
)

CPU = torch.device("cpu")
SETTINGS = MeasureSettings(
    warmup_seconds=0.02, warmup_calls=3, window_seconds=0.05, window_calls=4, window_steps=4, memory_seconds=0.02, idle_seconds=0.05, repeats=3,
    cooldown_seconds=0.0, allow_shared=False, serving_batch_size=1, serving_prompt_length=1, serving_output_length=2,
    evaluation_batch_size=1, perplexity_windows=2, country_iso_code="USA",
)  # fmt: skip


class Meter:
    """An energy meter of a constant 10 W."""

    nvml = None

    @contextmanager
    def window(self) -> Iterator[EnergyReading]:
        reading, started = EnergyReading(), time.perf_counter()
        yield reading
        reading.seconds = time.perf_counter() - started
        reading.joules = 10 * reading.seconds


def measured(*workloads: Workload, repeats: int = 3) -> WorkloadResult:
    settings = SETTINGS.model_copy(update={"repeats": repeats})
    return measure_workloads(
        workloads, settings, Meter(), MemoryMeter(CPU), window_calls=settings.window_calls, seed=0  # type: ignore[arg-type]
    )[0]  # fmt: skip


def test_memory_is_counted_above_the_idle_process() -> None:
    values = chain([GIB, 2 * GIB], repeat(4 * GIB))
    meter = MemoryMeter(CPU, read=lambda: next(values))
    with meter.window() as reading:
        time.sleep(0.1)
    assert reading.peak == 3.0
    assert 1.0 < reading.mean < 3.0
    assert reading.reserved is None
    assert reading.process == 4.0, "what the whole process holds"


def test_memory_of_a_real_allocation() -> None:
    meter = MemoryMeter(CPU)
    with meter.window() as reading:
        block = np.ones(64 * 1024 * 1024, dtype=np.uint8)
        time.sleep(0.05)
    assert block.nbytes / GIB * 0.9 < reading.peak < block.nbytes / GIB * 3


def test_memory_sensor_that_dies_is_an_error_and_leaves_no_thread() -> None:
    def read() -> int:
        if calls:
            raise OSError("gone")
        return 0

    calls: list[int] = []
    meter = MemoryMeter(CPU, read=read)
    before = threading.active_count()
    with pytest.raises(MeasurementError, match=r"memory sensor failed .*gone"), meter.window():
        calls.append(1)
        time.sleep(0.05)
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["memory", "utilization"])
def test_sampling_ten_thousand_times_keeps_nothing(kind: str) -> None:
    taken, enough = 0, {200: threading.Event(), 10_000: threading.Event()}

    def read() -> int:
        nonlocal taken
        taken += 1
        if taken in enough:
            enough[taken].set()
        return 1_000_000 + taken  # another object each time

    if kind == "memory":
        window: Any = MemoryMeter(CPU, read=read, interval_s=0.0).window()
    else:
        window = UtilizationMeter(gpu(read), interval_s=0.0).window()
    tracemalloc.start()
    try:
        with window as reading:
            assert enough[200].wait(60)
            before = tracemalloc.get_traced_memory()[0]
            assert enough[10_000].wait(60)
            grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000, "two bytes a sample"
    assert (reading.peak if kind == "memory" else reading.percent) > 0


def gpu(busy_percent: Callable[[], float]) -> Any:
    return SimpleNamespace(busy_percent=busy_percent, sm_clock_mhz=lambda: 1755.0)


def test_cpu_utilization_tells_sleep_from_work() -> None:
    meter = UtilizationMeter(None)
    with meter.window() as asleep:
        time.sleep(0.1)
    with meter.window() as busy:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert asleep.percent < 20
    assert asleep.percent < busy.percent <= 105


def test_gpu_utilization_leaves_out_what_the_sensor_averages_with_the_time_before() -> None:
    begun = time.perf_counter()
    lagging = gpu(lambda: 99.0 if time.perf_counter() - begun > 0.2 else 0.0)
    with UtilizationMeter(lagging, interval_s=0.02).window() as reading:
        time.sleep(0.5)
    assert reading.percent == 99.0
    assert reading.sm_clock_mhz == 1755.0


def test_gpu_utilization_is_the_mean_of_samples_and_a_dead_sensor_is_an_error() -> None:
    values = iter([40.0, 60.0, 50.0, 50.0])
    meter = UtilizationMeter(gpu(lambda: next(values)))
    with meter.window() as reading:
        time.sleep(0.25)
    assert 40 <= reading.percent <= 60

    def dead() -> float:
        raise MeasurementError("the GPU's sensor stopped answering")

    broken = UtilizationMeter(gpu(dead))
    with pytest.raises(MeasurementError, match="stopped answering"), broken.window():
        time.sleep(0.15)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5e12),
        ("NVIDIA H200", "bfloat16", 989.4e12),
        ("NVIDIA H200 NVL", "bfloat16", 835.5e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16", None),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362.1e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA A1000 Laptop GPU", "bfloat16", None),
        ("Intel(R) Xeon(R) Processor", "float32", None),
    ],
)
def test_peaks_are_of_the_very_device(name: str, dtype: str, peak: float | None) -> None:
    assert peak_flops(name, dtype) == peak


def test_impossible_utilization_is_an_error() -> None:
    assert model_flops_utilization(495e12, 990e12) == pytest.approx(50)
    with pytest.raises(MeasurementError, match=r"104\.0 % cannot be"):
        model_flops_utilization(1.04, 1.0)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=12), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_summary_contains_its_median_and_follows_the_unit(repeats: list[float], scale: float) -> None:
    value = summarize("average_latency", repeats, source="measured", method="test")
    scaled = summarize("average_latency", [scale * entry for entry in repeats], source="measured", method="test")
    assert value.value == pytest.approx(float(np.median(repeats)))
    assert scaled.value == pytest.approx(scale * value.value)
    assert value.repeats == repeats
    if len(repeats) == 1:
        assert value.ci_low is None
        assert value.coefficient_of_variation is None
    else:
        assert value.ci_low is not None
        assert value.ci_high is not None
        assert value.ci_low <= value.value <= value.ci_high
        assert scaled.ci_low == pytest.approx(scale * value.ci_low)
        assert value == summarize("average_latency", repeats, source="measured", method="test"), "deterministic"


def test_noise_is_flagged() -> None:
    assert variation([1.0, 1.0, 1.0]) == 0
    assert not summarize("average_latency", [1.0, 1.01, 0.99], source="measured", method="t").noisy
    assert summarize("average_latency", [1.0, 1.5, 0.7], source="measured", method="t").noisy


def test_bootstrap_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        low, high = bootstrap_interval(generator.normal(5, 2, size=40), lambda draws: draws.mean(axis=1), seed=trial)
        hits += low <= 5 <= high
    assert hits >= 50


def test_protocol_keeps_its_lengths() -> None:
    calls = []

    def step() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.004)

    result = measured(Workload(step, 8, 2, CPU))
    assert result.warmup_calls >= 3
    assert len(result.windows) == 3
    assert all(window.energy.seconds >= window.seconds >= 0.05 and window.calls >= 4 for window in result.windows)
    assert len(result.memory) == 3, "a pass for each repeat"
    passes = len(calls) - result.warmup_calls - sum(window.calls for window in result.windows)
    assert 3 <= passes <= 3 * 5, "passes of 0.02 s, of calls of 0.004 s and more"
    for seconds, joules in zip(result.seconds_per_call(), result.joules_per_call(), strict=True):
        assert 0.004 <= seconds < 0.05
        assert joules >= 10 * seconds, "the energy window holds the calls"


def test_work_of_others_is_told_from_ones_own() -> None:
    window = WindowResult(1, 1.0, EnergyReading(), UtilizationReading(99.0, others_cores=0.2), 0, None, [])
    disturbed = dataclasses.replace(window, busy=UtilizationReading(99.0, others_cores=1.14))
    on_gpu = dataclasses.replace(window, busy=UtilizationReading(99.0, on_gpu=True))
    result = WorkloadResult(1, 0.0, True, [MemoryReading()], [window, window], "", "")
    assert result.doubts() == ""
    assert dataclasses.replace(result, windows=[on_gpu]).doubts() == ""
    spoiled = dataclasses.replace(result, windows=[window, disturbed]).doubts()
    assert spoiled == "; DOUBTFUL: other programs kept up to 1.1 of the cores busy"


def test_gpu_that_waits_for_its_host_is_doubted() -> None:
    def doubts(*shares: float, on_gpu: bool = True) -> str:
        windows = [
            WindowResult(1, 1.0, EnergyReading(), UtilizationReading(share, on_gpu=on_gpu), 0, None, [])
            for share in shares
        ]
        return WorkloadResult(1, 0.0, True, [MemoryReading()], windows, "", "").doubts()

    assert "the GPU was busy for less than 80 % of the time" in doubts(45.0, 53.0, 44.0)
    assert doubts(99.0, 70.0, 99.0) == "", "one window alone may have been disturbed"
    assert doubts(45.0, 53.0, 44.0, on_gpu=False) == ""


def warmed_up(monkeypatch: pytest.MonkeyPatch, lengths: Iterator[float]) -> tuple[int, float, bool]:
    """Warms up with calls that take the lengths by a clock of their own."""
    now = [0.0]

    def step() -> None:
        now[0] += next(lengths)

    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return protocol._warm_up(Workload(step, 1, 1, CPU), SETTINGS)


def test_warm_up_that_never_settles_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = (SETTINGS.warmup_seconds * 0.9**call for call in count())
    _, seconds, stable = warmed_up(monkeypatch, faster)
    assert not stable
    assert seconds >= 5 * SETTINGS.warmup_seconds


def test_warm_up_of_uneven_calls_ends_when_they_get_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    short = SETTINGS.warmup_seconds / 2
    uneven = chain([100 * short, 3 * short, 2 * short], cycle([short, 1.5 * short, 1.2 * short]))
    calls, _, stable = warmed_up(monkeypatch, uneven)
    assert stable
    assert calls == 7, "from then on no three calls were faster than those before"


def test_warm_up_of_even_calls_needs_three(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _, stable = warmed_up(monkeypatch, repeat(SETTINGS.warmup_seconds))
    assert (calls, stable) == (max(3, SETTINGS.warmup_calls), True)


def test_compilation_is_no_warm_up() -> None:
    lengths = chain([0.15], repeat(0.001))
    result = measured(Workload(lambda: time.sleep(next(lengths)), 1, 1, CPU))
    assert result.warmup_seconds >= 0.15 + SETTINGS.warmup_seconds
    assert result.warmup_calls > SETTINGS.warmup_calls, "the long first call did not use up the warm-up's seconds"


def test_a_garbage_collection_in_a_window_or_a_memory_pass_walks_only_what_is_new() -> None:
    exempt: list[int] = []
    result = measured(Workload(lambda: exempt.append(gc.get_freeze_count()), 1, 1, CPU))
    warming = result.warmup_calls
    assert not any(exempt[:warming])
    assert len(exempt) >= warming + SETTINGS.repeats + sum(window.calls for window in result.windows)
    assert min(exempt[warming:]) > 10_000
    assert gc.get_freeze_count() == 0


def test_memory_is_not_sampled_while_the_device_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = [0]

    def step() -> None:
        allocated[0] = 4 * GIB
        time.sleep(0.002)

    def catch_up(device: torch.device) -> None:
        allocated[0] = 0
        time.sleep(0.05)

    monkeypatch.setattr("efficientllm.measurement.protocol.synchronize", catch_up)
    meter = MemoryMeter(CPU, read=lambda: allocated[0], interval_s=0.001)
    (result,) = measure_workloads(
        [Workload(step, 1, 1, CPU)], SETTINGS, Meter(), meter, window_calls=4, seed=0  # type: ignore[arg-type]
    )  # fmt: skip
    assert all(reading.mean > 3 for reading in result.memory)


def test_memory_of_graphs_is_in_the_peak() -> None:
    meter = MemoryMeter(CPU, read=lambda: 4 * GIB, interval_s=0.001)
    results = measure_workloads(
        [Workload(lambda: time.sleep(0.002), 1, 1, CPU, unseen_bytes=unseen) for unseen in (0, GIB)], SETTINGS, Meter(),  # type: ignore[arg-type]
        meter, window_calls=1, seed=0,
    )  # fmt: skip
    assert [(result.memory[0].mean, result.memory[0].peak, result.unseen_bytes) for result in results] == [
        (0.0, 0.0, 0), (0.0, 1.0, GIB),
    ]  # fmt: skip


def test_a_window_keeps_the_device_busy_and_the_host_near(monkeypatch: pytest.MonkeyPatch) -> None:
    least, pending, done, depths = 3, deque[int](), [0], list[int]()

    class Event:
        def record(self) -> None:
            self.call = pending[-1]

        def synchronize(self) -> None:
            while pending and pending[0] <= self.call:
                done[0] = pending.popleft()
            depths.append(len(pending))

    def step() -> None:
        pending.append(done[0] + len(pending) + 1)
        time.sleep(0.001)

    def wait_for_all(device: torch.device) -> None:
        pending.clear()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr("efficientllm.measurement.protocol.synchronize", wait_for_all)
    calls, _ = protocol._run_for(Workload(step, 1, 1, torch.device("cuda")), 0.05, least)
    assert calls > least
    assert len(depths) == calls - least + 1
    assert set(depths) == {least - 1}, "the device has the next calls' work whenever the host waits"
    assert not pending


def test_compared_workloads_take_turns_in_random_order() -> None:
    order: list[int] = []

    def workload(name: int) -> Workload:
        def step() -> None:
            order.append(name)
            time.sleep(0.002)

        return Workload(step, 1, 1, CPU)

    settings = SETTINGS.model_copy(update={"repeats": 8, "window_seconds": 0.004})
    results = measure_workloads(
        [workload(0), workload(1)], settings, Meter(), MemoryMeter(CPU), window_calls=1, seed=0  # type: ignore[arg-type]
    )  # fmt: skip
    turns = [[window.turn // 2 for window in result.windows] for result in results]
    assert turns == [list(range(8)), list(range(8))], "each repeat takes a window of each"
    first = [result.windows[repeat].turn % 2 for result in results[:1] for repeat in range(8)]
    assert set(first) == {0, 1}, "sometimes the one is first, sometimes the other"
    windows = sorted((window.turn, name) for name, result in enumerate(results) for window in result.windows)
    taken = [name for name, _ in itertools.groupby(order)]
    assert [name for _, name in windows] != [0, 1] * 8
    assert len(taken) > 8


def test_idle_power_of_a_sleep() -> None:
    quiet = idle(0.05, Meter(), allow_shared=True)  # type: ignore[arg-type]
    assert quiet.watts == pytest.approx(10.0)
    assert quiet.missing is None


def test_idle_power_that_cannot_be_read_has_a_reason() -> None:
    class Silent(Meter):
        @contextmanager
        def window(self) -> Iterator[EnergyReading]:
            yield EnergyReading()
            raise MeasurementError("0 J in 0.05 s")

    quiet = idle(0.05, Silent(), allow_shared=True)  # type: ignore[arg-type]
    assert (quiet.watts, quiet.missing) == (None, "0 J in 0.05 s")


def test_idle_power_of_a_failing_counter_is_none() -> None:
    class Failing(Meter):
        @contextmanager
        def window(self) -> Iterator[EnergyReading]:
            with super().window() as reading:
                yield reading
            reading.fault = "the counter went backwards"

    quiet = idle(0.05, Failing(), allow_shared=True)  # type: ignore[arg-type]
    assert (quiet.watts, quiet.missing) == (None, "the counter went backwards")


def test_cpu_that_others_use_is_refused_or_said() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        quiet = idle(0.4, Meter(), allow_shared=True)  # type: ignore[arg-type]
        assert quiet.others_cores is None or quiet.others_cores > 0.5
        if quiet.others_cores is not None:
            assert (
                "DOUBTFUL: other programs kept up to"
                in measured(Workload(lambda: time.sleep(0.01), 1, 1, CPU)).doubts()
            )
            with pytest.raises(MeasurementError, match=r"keep .* cores busy.*measure\.allow_shared"):
                idle(0.4, Meter(), allow_shared=False)  # type: ignore[arg-type]
    finally:
        busy.kill()
        busy.wait()


def test_foreign_process_is_refused_or_said() -> None:
    shared = SimpleNamespace(other_processes=lambda: [17, 23])
    with pytest.raises(MeasurementError, match=r"17, 23.*measure\.allow_shared"):
        check_exclusive(shared, allow_shared=False)  # type: ignore[arg-type]
    assert check_exclusive(shared, allow_shared=True) == [17, 23]  # type: ignore[arg-type]
    assert check_exclusive(None, allow_shared=False) == []


@pytest.mark.parametrize(
    ("counted", "integrated", "works", "agrees"),
    [(None, 600.0, False, False), (0.0, 600.0, False, False), (600.0, 620.0, True, True), (187.0, 327.0, True, False)],
)
def test_energy_counter_is_judged(counted: float | None, integrated: float, works: bool, agrees: bool) -> None:
    verdict = judge(counted, integrated)
    assert (verdict["works"], verdict["agrees_with_power"]) == (works, agrees)
    assert (verdict["reason"] is None) == agrees


def test_truncated_weights_are_noticed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(10), "b": torch.zeros(3, dtype=torch.int8)}, path)
    assert tensor_bytes(path) == 43
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="is truncated"):
        tensor_bytes(path)


def test_every_metric_of_the_summary_is_known() -> None:
    for metric in metrics.METRICS:
        value = summarize(metric.key, [1.0, 2.0], source="measured", method="t")
        assert (value.unit, value.direction) == (metric.unit, metric.direction)
