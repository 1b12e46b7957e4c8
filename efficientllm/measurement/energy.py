"""Energy by CodeCarbon, with what it measures and what it models kept apart.

CodeCarbon reads NVML's energy counter for a GPU, and RAPL's for a CPU where that is readable. Without RAPL it models the
CPU from its load, and it always models RAM as a constant. The ranked figure is the GPU's energy where the cell runs on a
GPU, else the CPU package's; it says which it is, and whether it was measured or modelled. RAM is kept as information.

NVML's counter moves only now and then, every 90 ms on an H100, which is several percent of a window of two seconds. So a window
begins just after a move, ends with one, and what the idle card used while that was waited for is taken off.

Where NVML's counter cannot be read, or goes backwards, CodeCarbon goes over to sampled power without a word. So this meter
reads the counter beside it: what it finds is in the reading's `fault`.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import CounterMove, NvmlDevice
from efficientllm.records import Source

if TYPE_CHECKING:
    import torch

JOULES_PER_KWH = 3.6e6
COUNTER_TOLERANCE = 0.05
"""Largest relative difference between CodeCarbon's and NVML's figure that is not flagged."""

_LONGEST_SILENCE_S = 1.0
"""Seconds for which the counter of a sensor that works may stand still."""

_MEASURING_MODES = {
    "intel_rapl": "RAPL package counter",
    "intel_power_gadget": "Power Gadget",
    "windows_emi": "RAPL (EMI)",
}
_DEFAULT_COUNTRY = "USA"
_INSTEAD = "CodeCarbon took sampled power instead"


@dataclass
class EnergyReading:
    """One window.

    Args:
        seconds: Length of the window.
        joules: The ranked figure.
        components: Joules of `gpu`, `cpu` and `ram`, each whether measured or modelled.
        counter_joules: NVML's own counter over the same window, where there is one.
        fault: What makes the figure doubtful; None where nothing does.
    """

    seconds: float = 0.0
    joules: float = 0.0
    components: dict[str, float] = field(default_factory=dict)
    counter_joules: float | None = None
    fault: str | None = None

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds

    @property
    def counter_difference(self) -> float | None:
        """Relative difference between CodeCarbon's joules and NVML's counter."""
        return None if not self.counter_joules else abs(self.joules / self.counter_joules - 1)


class EnergyMeter:
    """Energy of this process' device over windows of time; one CodeCarbon tracker per process.

    Args:
        device: Where the cell runs.
        country_iso_code: Three-letter code of the grid, for CodeCarbon's carbon intensity.
        tracker: A started-once tracker to use instead of CodeCarbon's own (for tests).
        nvml: The GPU's meters to use instead of NVML's own (for tests).
    """

    def __init__(
        self,
        device: "torch.device",
        country_iso_code: str = _DEFAULT_COUNTRY,
        *,
        tracker: Any = None,
        nvml: NvmlDevice | None = None,
    ) -> None:
        self.nvml = nvml or (NvmlDevice.of(device) if device.type == "cuda" else None)
        self._tracker = tracker if tracker is not None else offline_tracker(country_iso_code, self.nvml)
        # the first window detects the hardware, which takes seconds and would be part of it
        self._tracker.start_task("prime")
        self._tracker.stop_task("prime")
        modes = {type(hardware).__name__: getattr(hardware, "_mode", None) for hardware in self._tracker._hardware}
        cpu_mode = modes.get("CPU")
        self.component_methods = {
            "gpu": _gpu_method(self.nvml) if "GPU" in modes else "none",
            "cpu": _MEASURING_MODES.get(str(cpu_mode), f"model: {cpu_mode}") if "CPU" in modes else "none",
            "ram": "model: constant power per memory module",
        }
        self.scope = "gpu" if self.nvml is not None else "cpu"
        self.device_name = _name_of(device)
        if self.scope == "gpu" and "GPU" not in modes:
            raise MeasurementError("CodeCarbon does not see the GPU that the cell runs on: check that NVML works")

    @property
    def method(self) -> str:
        """How the ranked figure is read."""
        return f"CodeCarbon, {self.scope.upper()}: {self.component_methods[self.scope]}"

    @property
    def source(self) -> Source:
        """Whether the ranked figure is measured or modelled."""
        method = self.component_methods[self.scope]
        return "modelled" if method.startswith("model") or method == "none" else "measured"

    @contextlib.contextmanager
    def window(self, *, aligned: bool = True) -> Iterator[EnergyReading]:
        """Measures the block; the reading is filled when it ends.

        Args:
            aligned: Let the window begin and end with moves of the GPU's energy counter, which takes up to four of its
                periods; the block has to leave the GPU idle. For windows that follow one another without a gap False will
                do: what one of them misses the next one has.

        Raises:
            MeasurementError: No energy was counted: a sensor does not work, and zero joules are no result.
        """
        reading = EnergyReading()
        name = uuid.uuid4().hex
        nvml = self.nvml if aligned and self.nvml is not None and self.nvml.counter_move() is not None else None
        counter = self.nvml.joules() if self.nvml is not None else None
        started = time.perf_counter()
        last = None
        self._tracker.start_task(name)
        try:
            yield reading
            reading.seconds = time.perf_counter() - started
            if nvml is not None and nvml.counter_move() is not None:
                last = nvml.counter_move()  # the second move: what the counter shows may be older than the first
        finally:
            try:
                data = self._tracker.stop_task(name)
            except Exception as error:
                raise MeasurementError(
                    f"{self.method}: the sensor failed in the middle of a window ({error})"
                ) from error
            stopped = time.perf_counter() - started
        reading.seconds = stopped if last is None else reading.seconds
        energies = {part: getattr(data, f"{part}_energy") * JOULES_PER_KWH for part in ("gpu", "cpu", "ram")}
        reading.components = energies
        reading.joules = energies[self.scope]
        if self.nvml is not None and counter is not None and reading.joules > 0:
            self._compare(reading, counter, self.nvml.joules())
        if nvml is not None and last is not None:
            _take_off_rest(reading, nvml, last, started + reading.seconds)
        if not reading.joules > 0:
            raise MeasurementError(
                f"{self.method} counted {reading.joules:g} J in {reading.seconds:.2f} s: the sensor does not work, or the "
                "window (measure.window_seconds) is shorter than its period"
            )

    def _compare(self, reading: EnergyReading, before: float, after: float | None) -> None:
        """Holds CodeCarbon's joules against NVML's counter over the same window."""
        if after is None:
            reading.fault = f"NVML's energy counter stopped answering: {_INSTEAD}"
        elif after < before:
            reading.fault = f"NVML's energy counter went backwards (wrapped, or the driver was reloaded): {_INSTEAD}"
        elif after == before:
            reading.fault = "NVML's energy counter stood still"
        else:
            reading.counter_joules = after - before
            if (difference := abs(reading.joules / reading.counter_joules - 1)) > COUNTER_TOLERANCE:
                reading.fault = f"CodeCarbon's joules and those of NVML's counter differ by {difference:.0%}"

    @contextlib.contextmanager
    def running(self) -> Iterator["RunningEnergy"]:
        """Measures a long run that wants to know its energy so far; see `RunningEnergy`."""
        running = RunningEnergy(self)
        try:
            yield running
        finally:
            running.close()


class RunningEnergy:
    """Energy since the beginning of a run, read now and then.

    Args:
        meter: The process' meter.
    """

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._total = 0.0
        self._silent_s = 0.0
        self.fault: str | None = None
        """Why the energy of the whole run is not known; None as long as it is."""
        self._open()

    def _open(self) -> None:
        self._stack = contextlib.ExitStack()
        self._reading = self._stack.enter_context(self._meter.window(aligned=False))

    def joules(self) -> float | None:
        """Joules so far; None before the first were counted, and for good once the sensor has failed."""
        if self.fault is None:
            self.close()
        if self.fault is None:
            self._open()
        return None if self.fault is not None or self._total == 0 else self._total

    def close(self) -> None:
        """Ends the current window; one too short for the sensor to have counted anything adds nothing."""
        try:
            self._stack.close()
        except MeasurementError as error:
            self._silent_s += self._reading.seconds
            if not self._reading.components or self._silent_s > _LONGEST_SILENCE_S:
                self.fault = str(error)
        else:
            self._total += self._reading.joules
            self._silent_s = 0.0
        self._reading = EnergyReading()


def offline_tracker(country_iso_code: str, nvml: NvmlDevice | None = None) -> Any:
    """Builds a CodeCarbon tracker without network, files or messages.

    Everything that would send, or change a figure, is given here: CodeCarbon takes what is not from the environment or from
    a .codecarbon.config in the home or working directory, where a `pue` of 2 doubles all joules without a word.

    Args:
        country_iso_code: Three-letter code of the grid.
        nvml: The GPU to track; None tracks CPU and RAM, and every GPU there is.
    """
    from codecarbon import OfflineEmissionsTracker

    silence_codecarbon()
    return OfflineEmissionsTracker(
        country_iso_code=country_iso_code,
        output_methods=[],
        allow_multiple_runs=True,
        log_level="critical",
        measure_power_secs=0.5,
        tracking_mode="machine",
        pue=1.0,
        force_cpu_power=None,
        force_ram_power=None,
        force_mode_cpu_load=False,
        rapl_include_dram=False,
        rapl_prefer_psys=False,
        **({} if nvml is None else {"gpu_ids": [nvml.index()]}),
    )


def silence_codecarbon() -> None:
    """Keeps CodeCarbon from logging; it speaks before it reads its own log_level."""
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)


def _take_off_rest(reading: EnergyReading, nvml: NvmlDevice, last: CounterMove, ended: float) -> None:
    """Takes off what the idle GPU used between the block's end and the window's, at the power of the period after it."""
    following = nvml.counter_move()
    if following is None:
        return
    watts = (following.joules - last.joules) / (following.time - last.time)
    rest = watts * (last.time - ended)
    reading.joules -= rest
    reading.components["gpu"] -= rest
    if reading.counter_joules is not None:
        reading.counter_joules -= rest


def _name_of(device: "torch.device") -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    from efficientllm.measurement.hardware import cpu_model

    return cpu_model()


def _gpu_method(nvml: NvmlDevice | None) -> str:
    fault = None if nvml is None else nvml.counter_fault()
    return "NVML energy counter" if fault is None else f"NVML power, sampled every second (no energy counter: {fault})"
