"""The energy meter with sensors that work, lie, or die."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm.errors import MeasurementError, ParameterError
from efficientllm.measurement import energy
from efficientllm.measurement.carbon import carbon_dioxide_grams
from efficientllm.measurement.energy import EnergyMeter

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def hardware(kind: str, mode: str | None = None) -> Any:
    return type(kind, (), {"_mode": mode})()


class Tracker:
    """CodeCarbon's interface with figures of our own, in joules per window."""

    def __init__(self, *parts: Any, gpu: float = 0.0, cpu: float = 0.0, ram: float = 0.0) -> None:
        self._hardware = [hardware("RAM"), *parts]
        self.joules = {"gpu": gpu, "cpu": cpu, "ram": ram}
        self.windows: list[str] = []
        self.open: list[str] = []

    def start_task(self, name: str) -> None:
        self.open.append(name)

    def stop_task(self, name: str) -> Any:
        self.open.remove(name)
        self.windows.append(name)
        return SimpleNamespace(**{f"{part}_energy": value / 3.6e6 for part, value in self.joules.items()})


class Counter:
    """A GPU's counter that rises by a step at each reading."""

    def __init__(self, step: float | None) -> None:
        self.step = step
        self.value = 1000.0

    def counter_fault(self) -> str | None:
        return "Not Supported" if self.step is None else None

    def counter_move(self) -> None:
        """It moves by being read, so there is nothing to wait for."""

    def joules(self) -> float | None:
        if self.step is None:
            return None
        self.value += self.step
        return self.value


@pytest.fixture(autouse=True)
def no_cuda_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_name_of", lambda device: "a device")


@pytest.mark.parametrize(
    ("mode", "source", "method"),
    [
        ("intel_rapl", "measured", "RAPL package counter"),
        ("cpu_load", "modelled", "model: cpu_load"),
        ("constant", "modelled", "model: constant"),
    ],
)
def test_cpu_says_how_it_was_read(mode: str, source: str, method: str) -> None:
    meter = EnergyMeter(CPU, tracker=Tracker(hardware("CPU", mode), cpu=7.0, ram=20.0))
    with meter.window() as reading:
        pass
    assert reading.joules == pytest.approx(7.0), "RAM's constant is no part of the ranked figure"
    assert reading.components["ram"] == pytest.approx(20.0)
    assert (meter.source, meter.component_methods["cpu"]) == (source, method)
    assert method in meter.method


def test_gpu_is_ranked_where_the_cell_runs_on_it() -> None:
    tracker = Tracker(hardware("CPU", "cpu_load"), hardware("GPU"), gpu=300.0, cpu=7.0, ram=20.0)
    meter = EnergyMeter(CUDA, tracker=tracker, nvml=Counter(step=303.0))  # type: ignore[arg-type]
    with meter.window() as reading:
        pass
    assert reading.joules == pytest.approx(300.0)
    assert meter.source == "measured"
    assert reading.counter_joules == pytest.approx(303.0)
    assert reading.counter_difference == pytest.approx(3 / 303)


def test_disagreeing_counter_is_seen() -> None:
    tracker = Tracker(hardware("CPU", "cpu_load"), hardware("GPU"), gpu=300.0)
    meter = EnergyMeter(CUDA, tracker=tracker, nvml=Counter(step=200.0))  # type: ignore[arg-type]
    with meter.window() as reading:
        pass
    assert reading.counter_difference == pytest.approx(0.5)
    assert reading.fault == "CodeCarbon's joules and those of NVML's counter differ by 50%"


@pytest.mark.parametrize("step", [None, -5.0, 0.0])
def test_counter_that_is_absent_or_wrapped_gives_no_comparison(step: float | None) -> None:
    tracker = Tracker(hardware("CPU", "cpu_load"), hardware("GPU"), gpu=300.0)
    meter = EnergyMeter(CUDA, tracker=tracker, nvml=Counter(step))  # type: ignore[arg-type]
    with meter.window() as reading:
        pass
    assert reading.counter_joules is None
    assert reading.counter_difference is None


@pytest.mark.parametrize("joules", [0.0, -1.0, float("nan")])
def test_no_joules_are_an_error(joules: float) -> None:
    meter = EnergyMeter(CPU, tracker=Tracker(hardware("CPU", "intel_rapl"), cpu=joules, ram=20.0))
    with (
        pytest.raises(MeasurementError, match=r"RAPL package counter counted .* J in .* the sensor does not work"),
        meter.window(),
    ):
        pass


def test_gpu_that_codecarbon_does_not_see_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="does not see the GPU"):
        EnergyMeter(CUDA, tracker=Tracker(hardware("CPU", "cpu_load"), cpu=1.0), nvml=Counter(1.0))  # type: ignore[arg-type]


def test_failing_work_closes_its_window() -> None:
    tracker = Tracker(hardware("CPU", "cpu_load"), cpu=1.0)
    meter = EnergyMeter(CPU, tracker=tracker)
    with pytest.raises(ZeroDivisionError), meter.window():
        _ = 1 / 0
    assert tracker.open == []


def test_sensor_that_dies_in_the_middle_is_one_clear_error() -> None:
    class Dying(Tracker):
        def stop_task(self, name: str) -> Any:
            if len(self.windows) >= 1:
                raise OSError("No such device")
            return super().stop_task(name)

    meter = EnergyMeter(CPU, tracker=Dying(hardware("CPU", "intel_rapl"), cpu=1.0))
    with pytest.raises(MeasurementError, match="No such device"), meter.window():
        pass


def test_running_energy_accumulates() -> None:
    meter = EnergyMeter(CPU, tracker=Tracker(hardware("CPU", "cpu_load"), cpu=2.0))
    with meter.running() as running:
        assert [running.joules() for _ in range(3)] == pytest.approx([2.0, 4.0, 6.0])
    assert running.fault is None


def test_running_energy_of_a_sensor_that_dies_is_unknown_and_says_why() -> None:
    class Dying(Tracker):
        def stop_task(self, name: str) -> Any:
            if len(self.windows) >= 3:
                raise OSError("No such device")
            return super().stop_task(name)

    meter = EnergyMeter(CPU, tracker=Dying(hardware("CPU", "cpu_load"), cpu=2.0))
    with meter.running() as running:
        taken = [running.joules() for _ in range(5)]
    assert taken[:2] == pytest.approx([2.0, 4.0])
    assert taken[2:] == [None, None, None], "what was missed cannot be made good"
    assert running.fault is not None
    assert "No such device" in running.fault


def test_running_energy_of_a_silent_sensor_is_unknown_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_LONGEST_SILENCE_S", 0.02)
    tracker = Tracker(hardware("CPU", "intel_rapl"), cpu=2.0)
    with EnergyMeter(CPU, tracker=tracker).running() as running:
        assert running.joules() == pytest.approx(2.0)
        tracker.joules["cpu"] = 0.0
        assert running.joules() == pytest.approx(2.0), "a step of the counter may be due"
        time.sleep(0.05)
        assert running.joules() is None
    assert "counted 0 J" in str(running.fault)


def test_only_the_used_gpu_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    import codecarbon

    asked: dict[str, Any] = {}
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", lambda **arguments: asked.update(arguments))
    energy.offline_tracker("USA", SimpleNamespace(index=lambda: 1))  # type: ignore[arg-type]
    assert asked["gpu_ids"] == [1]


def test_codecarbon_itself_stays_offline_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: reached.append(arguments) or [])
    meter = EnergyMeter(CPU)
    with meter.window() as reading:
        sum(range(2_000_000))
    assert reading.joules > 0
    assert 0 < reading.watts < 2000
    assert meter.source in ("measured", "modelled")
    assert reached == []
    assert list(tmp_path.iterdir()) == []


def test_carbon_follows_the_grid() -> None:
    america, france = (carbon_dioxide_grams(3.6e6, country) for country in ("USA", "FRA"))
    assert 0 < france < america
    assert carbon_dioxide_grams(7.2e6, "USA") == pytest.approx(2 * america)
    with pytest.raises(ParameterError, match=r"country_iso_code' is 'XYZ', for which CodeCarbon has no grid data"):
        carbon_dioxide_grams(1.0, "XYZ")
