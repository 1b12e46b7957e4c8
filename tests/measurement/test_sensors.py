"""GPU sensors that work, lie, or die: a made-up driver below the real meters and the real CodeCarbon."""

import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codecarbon.core import gpu as codecarbon_gpu
from codecarbon.core import gpu_nvidia, hardware_cache
from fake_pynvml import Gpu, NotSupportedError, lost, module, no_permission

from efficientllm.errors import MeasurementError
from efficientllm.measurement import exclusive, selftest
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.exclusive import check_exclusive
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.hardware import sensor_doubt
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.protocol import Workload, WorkloadResult, measure_workloads
from efficientllm.measurement.resource_values import energy_doubts, resource_values
from efficientllm.measurement.serving_values import _energy_by_phase
from efficientllm.measurement.utilization import UtilizationMeter

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
UUID = "GPU-22222222-0000-0000-0000-000000000000"
SETTINGS: Any = SimpleNamespace(
    warmup_seconds=0.01, warmup_calls=1, window_seconds=0.25, memory_seconds=0, repeats=2,
    cooldown_seconds=0.0, country_iso_code="FRA",
)  # fmt: skip

Install = Callable[..., Gpu]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts GPUs into the machine; CUDA's only device is the last of them."""

    def into(used: Gpu, *others: Gpu, initialises: bool = True) -> Gpu:
        library = module([*others, used], initialises=initialises)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.setattr(gpu_nvidia, "pynvml", library)
        monkeypatch.setattr(codecarbon_gpu, "PYNVML_AVAILABLE", True)
        monkeypatch.setattr(codecarbon_gpu, "is_nvidia_system", lambda: True)
        monkeypatch.setattr(hardware_cache, "_plans", {})
        uuid = used.uuid.removeprefix("GPU-")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Made-up")
        return used

    return into


def test_of_two_gpus_the_used_one_is_counted(install: Install) -> None:
    other = Gpu("GPU-11111111-0000-0000-0000-000000000000")
    gpu = install(Gpu(UUID), other)
    meter = EnergyMeter(CUDA)
    assert meter.nvml is not None
    assert (meter.nvml.index(), meter.nvml.uuid()) == (1, UUID)
    with meter.window() as reading:
        other.spend(1000.0)
        gpu.spend(30.0)
    assert reading.joules == pytest.approx(30.0)
    assert reading.watts == pytest.approx(30.0 / reading.seconds)
    assert reading.counter_joules == pytest.approx(30.0)
    assert (reading.fault, meter.source, meter.method) == (None, "measured", "CodeCarbon, GPU: NVML energy counter")


@pytest.mark.parametrize("latency", [0.0, 0.04])
def test_counter_that_moves_now_and_then_is_read_where_it_moves(install: Install, latency: float) -> None:
    """A card of 70 W at rest, 600 W under load and 100 W just after it, whose counter moves every 90 ms."""
    gpu = install(Gpu(UUID, period=0.09, latency=latency))
    gpu.draw(70.0)
    meter = EnergyMeter(CUDA)
    plain = []
    for pause in (0.0, 0.02, 0.05):
        for aligned in (True, False):
            # an unaligned window ends two thirds of a period after the last move that it sees
            time.sleep(pause if aligned else 0.09 - (time.perf_counter() - latency) % 0.09)
            with meter.window(aligned=aligned) as reading:
                started = time.perf_counter()
                gpu.draw(600.0)
                time.sleep(0.6)
                gpu.draw(100.0)
                seconds = time.perf_counter() - started
            gpu.draw(70.0)
            assert reading.fault is None
            error = reading.joules / (600.0 * seconds) - 1
            if aligned:
                assert abs(error) < 0.03, "the waiting card's power is not quite that of the period after it"
                assert reading.seconds == pytest.approx(seconds, abs=0.08)
                assert reading.counter_joules == pytest.approx(reading.joules, rel=1e-6)
                assert reading.components["gpu"] == reading.joules
            else:
                plain.append(error)
    assert min(plain) < -0.05, "what the counter has not shown yet is lost"


def test_counter_that_wraps_is_flagged(install: Install) -> None:
    gpu = install(Gpu(UUID))
    meter = EnergyMeter(CUDA)
    with meter.window() as reading:
        gpu.spend(5.0)
        time.sleep(0.02)
        gpu.offset_millijoules -= 10**8
    assert reading.counter_joules is None
    assert "went backwards" in str(reading.fault)
    assert "sampled power" in str(reading.fault)
    assert reading.joules >= 0.02 * 200.0, "what CodeCarbon takes instead"
    with meter.window() as after:
        gpu.spend(5.0)
    assert (after.fault, after.joules) == (None, pytest.approx(5.0))


def test_counter_that_stands_still_is_an_error(install: Install) -> None:
    gpu = install(Gpu(UUID, counted=0.0))
    meter = EnergyMeter(CUDA)
    with pytest.raises(MeasurementError, match=r"NVML energy counter counted 0 J in .* does not work"), meter.window():
        gpu.spend(5.0)


def test_counter_without_permission_leaves_power_and_says_so(install: Install) -> None:
    install(Gpu(UUID, broken={"TotalEnergyConsumption": no_permission()}))
    meter = EnergyMeter(CUDA)
    with meter.window() as reading:
        time.sleep(0.02)
    assert meter.component_methods["gpu"] == (
        "NVML power, sampled every second (no energy counter: Insufficient Permissions)"
    )
    assert (meter.source, reading.counter_joules) == ("measured", None)
    assert 0.02 * 200.0 <= reading.joules <= 200.0 * reading.seconds


def test_no_permission_at_all_is_an_error(install: Install) -> None:
    install(Gpu(UUID, broken={"TotalEnergyConsumption": no_permission(), "PowerUsage": no_permission()}))
    meter = EnergyMeter(CUDA)
    with pytest.raises(MeasurementError, match=r"Insufficient Permissions.* counted 0 J"), meter.window():
        time.sleep(0.05)


def test_driver_that_is_not_loaded_is_one_clear_error(install: Install) -> None:
    install(Gpu(UUID), initialises=False)
    with pytest.raises(MeasurementError, match=r"NVML cannot read the GPU \(Driver Not Loaded\)"):
        EnergyMeter(CUDA)


def test_gpu_that_is_lost_in_the_middle_is_an_error(install: Install) -> None:
    gpu = install(Gpu(UUID))
    meter = EnergyMeter(CUDA)
    with pytest.raises(MeasurementError, match="counted 0 J"), meter.window():
        gpu.spend(5.0)
        gpu.broken["*"] = lost()
    gpu.broken.clear()
    with (
        pytest.raises(MeasurementError, match=r"busy share failed in the middle of a window .*GPU is lost"),
        UtilizationMeter(meter.nvml, interval_s=0.01).window(),
    ):
        time.sleep(0.03)
        gpu.broken["*"] = lost()
        time.sleep(0.05)


def test_counter_that_stops_answering_is_flagged(install: Install) -> None:
    gpu = install(Gpu(UUID))
    with EnergyMeter(CUDA).window() as reading:
        time.sleep(0.02)
        gpu.broken["TotalEnergyConsumption"] = lost()
    assert "stopped answering" in str(reading.fault)
    assert 0.02 * 200.0 <= reading.joules <= 200.0 * reading.seconds


@pytest.mark.parametrize(
    ("gpu", "works", "agrees", "reason"),
    [
        (Gpu(UUID, steady=True), True, True, None),
        (Gpu(UUID, steady=True, counted=187 / 327), True, False, "it differs from integrated power by more than 10%"),
        (Gpu(UUID, steady=True, counted=0.0), False, False, "the energy counter does not rise under load"),
        (
            Gpu(UUID, broken={"TotalEnergyConsumption": NotSupportedError("Not Supported")}), False, False,
            "the energy counter cannot be read (Not Supported)",
        ),
        (Gpu(UUID, broken={"PowerUsage": no_permission()}), False, False, "Insufficient Permissions"),
    ],
)  # fmt: skip
def test_probe_holds_the_counter_against_power(
    install: Install, monkeypatch: pytest.MonkeyPatch, gpu: Gpu, works: bool, agrees: bool, reason: str | None
) -> None:
    install(gpu)
    monkeypatch.setattr(selftest, "_WARM_UP_S", 0.02)
    monkeypatch.setattr(selftest, "_SECONDS", 0.4)
    facts = selftest.energy_counter_works(CUDA, load=lambda: time.sleep(0.005))
    found = facts["energy_counter"]
    assert (found["works"], found["agrees_with_power"]) == (works, agrees)
    assert (reason or "") in str(found["reason"])
    assert (found["reason"] is None) == (reason is None)
    assert (facts["driver"], facts["power_limit_w"], facts["mig"]) == ("580.1", 700.0, False)


def measured(meter: EnergyMeter, gpu: Gpu, **settings: Any) -> WorkloadResult:
    """Calls of ten tokens and one joule each."""
    chosen = SimpleNamespace(**{**vars(SETTINGS), **settings})

    def step() -> None:
        time.sleep(0.005)
        gpu.spend(1.0)

    workload = Workload(step, 10, 1, CPU)
    (result,) = measure_workloads([workload], chosen, meter, MemoryMeter(CPU), window_calls=1, seed=0)  # type: ignore[arg-type]
    return result


def values(result: WorkloadResult, meter: EnergyMeter, idle: float | None, doubt: str | None) -> Findings:
    findings = Findings(SimpleNamespace(), {})  # type: ignore[arg-type]
    findings.information |= {
        "idle_watts": idle, "idle_watts_missing": None if idle else "0 J at idle", "energy_sensor_doubt": doubt,
    }  # fmt: skip
    configuration: Any = SimpleNamespace(profile=SimpleNamespace(measure=SETTINGS))
    resource_values(result, meter, 10, configuration, findings, "training")
    return findings


def test_the_whole_protocol_on_a_gpu(install: Install) -> None:
    gpu = install(Gpu(UUID, reasons=0x40 | 0x4))
    meter = EnergyMeter(CUDA)
    result = measured(meter, gpu)
    findings = values(result, meter, idle=20.0, doubt=None)
    energy, net = findings.values["energy_per_token"], findings.values["net_energy_per_token"]
    assert energy.repeats == pytest.approx([0.1, 0.1]), "a joule a call of ten tokens"
    windows = result.windows
    assert net.repeats == pytest.approx(
        [0.1 - 20 * taken.energy.seconds / taken.calls / 10 for taken in windows], rel=1e-4
    )
    power = findings.values["average_energy_consumption"].repeats
    assert power == pytest.approx([taken.calls / taken.energy.seconds for taken in windows])
    assert findings.values["processor_compute_utilization"].value == pytest.approx(80.0)
    facts = findings.information["training"]
    assert facts["energy_faults"] == [None, None]
    assert facts["celsius"] == [55.0, 55.0]
    assert facts["sm_clock_mhz"] == [1755.0, 1755.0]
    assert facts["slowed"] == [["hardware thermal slowdown"]] * 2, "the power limit is no slowdown"
    assert facts["kwh_per_million_tokens"] == pytest.approx(0.1 / 3.6)
    assert facts["grams_co2e_per_million_tokens"] > 0
    assert "DOUBTFUL" not in energy.method

    gpu.broken |= {
        name: NotSupportedError("Not Supported") for name in ("Temperature", "ClockInfo", "CurrentClocksEventReasons")
    }
    virtual = measured(meter, gpu, repeats=1, window_seconds=0.12).windows[0]
    assert (virtual.celsius, virtual.busy.sm_clock_mhz, virtual.slowed) == (None, None, []), (
        "a card that does not tell is measured all the same"
    )

    gpu.broken["ComputeRunningProcesses"] = lost()
    with pytest.raises(MeasurementError, match="GPU is lost"):
        check_exclusive(meter.nvml, allow_shared=True)


def test_doubts_stand_beside_the_figure(install: Install) -> None:
    gpu = install(Gpu(UUID))
    meter = EnergyMeter(CUDA)
    result = measured(meter, gpu, repeats=1, window_seconds=0.12)
    gpu_facts = {"energy_counter": {"reason": "it differs from integrated power by more than 10%"}}
    doubt = sensor_doubt({"gpus": [gpu_facts]}, CUDA)
    findings = values(result, meter, idle=None, doubt=doubt)
    assert "DOUBTFUL: the energy counter failed the probe's self-test" in findings.values["energy_per_token"].method
    assert findings.missing["net_energy_per_token"] == "no idle power: 0 J at idle"
    findings = values(result, meter, idle=300.0, doubt=None)
    assert "no more than at idle" in findings.missing["net_energy_per_token"]


def test_doubts_about_a_phase_stand_beside_its_energy(install: Install) -> None:
    gpu = install(Gpu(UUID))
    meter = EnergyMeter(CUDA)
    served, prefill = (measured(meter, gpu, repeats=1, window_seconds=0.12) for _ in range(2))
    served.windows[0].energy.joules *= 10
    prefill.windows[0].energy.fault = "the counter went backwards"
    findings = Findings(SimpleNamespace(), {}, information={"energy_sensor_doubt": "it failed the probe"})  # type: ignore[arg-type]
    settings: Any = SimpleNamespace(serving_batch_size=1, serving_prompt_length=4, serving_output_length=6)
    _energy_by_phase(settings, 4, 5, served, prefill, meter, findings)
    for key in ("prefill_energy_per_token", "decode_energy_per_token"):
        method = findings.values[key].method
        assert "DOUBTFUL: the counter went backwards" in method
        assert "DOUBTFUL: it failed the probe" in method
    assert "backwards" not in energy_doubts([served], findings)


def test_other_processes_and_own_memory(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "_LEAVING_S", 0.5)
    gpu = install(Gpu(UUID, processes={os.getpid(): 3 * 2**30, 4711: 2**30}))
    nvml = NvmlDevice.of(CUDA)
    with pytest.raises(MeasurementError, match=r"\(4711\).*measure\.allow_shared"):
        check_exclusive(nvml, allow_shared=False)
    assert check_exclusive(nvml, allow_shared=True) == [4711]
    assert nvml.process_bytes() == 3 * 2**30
    gpu.processes = {}
    assert check_exclusive(nvml, allow_shared=False) == []
    assert nvml.process_bytes() is None
    gpu.mig = True
    assert nvml.facts()["mig"] is True
