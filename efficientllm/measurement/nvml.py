"""NVIDIA's management library: the device's own meters, by the CUDA device that the process uses."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from efficientllm.errors import MeasurementError

if TYPE_CHECKING:
    import torch


_LONGEST_PERIOD_S = 0.3  # of an energy counter: 0.02 to 0.1 by the card
_POLL_S = 0.001


class CounterMove(NamedTuple):
    """When the energy counter moved, by `time.perf_counter`, and where to, in joules."""

    time: float
    joules: float


class NvmlDevice:
    """Meters of one GPU.

    Args:
        handle: NVML's handle of the device.
        library: The `pynvml` module, or a stand-in.
    """

    def __init__(self, handle: Any, library: Any) -> None:
        self._handle = handle
        self._library = library

    @classmethod
    def of(cls, device: "torch.device") -> "NvmlDevice":
        """Opens the meters of a CUDA device, found by its UUID since CUDA may number devices otherwise.

        Raises:
            MeasurementError: NVML cannot be used.
        """
        import pynvml
        import torch

        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return cls(pynvml.nvmlDeviceGetHandleByUUID(name), pynvml)
        except pynvml.NVMLError as error:
            raise MeasurementError(f"NVML cannot read the GPU ({error}): its energy cannot be measured") from error

    def index(self) -> int:
        """NVML's number of the device."""
        with nvml_errors_as_measurement_errors(self._library):
            return int(self._library.nvmlDeviceGetIndex(self._handle))

    def uuid(self) -> str:
        """The device's own name, which no other card has."""
        with nvml_errors_as_measurement_errors(self._library):
            return str(self._library.nvmlDeviceGetUUID(self._handle))

    def joules(self) -> float | None:
        """Energy counter since the driver was loaded; None where it cannot be read, see `counter_fault`."""
        return self._figure(lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)

    def counter_move(self) -> CounterMove | None:
        """Waits until the energy counter moves; None where it cannot be read, does not rise, or stands still."""
        before, end = self.joules(), time.perf_counter() + _LONGEST_PERIOD_S
        while before is not None and time.perf_counter() < end:
            now, when = self.joules(), time.perf_counter()
            if now is None or now < before:
                return None
            if now > before:
                return CounterMove(when, now)
            time.sleep(_POLL_S)
        return None

    def counter_fault(self) -> str | None:
        """Why the energy counter cannot be read (none before Volta, no permission); None where it can."""
        try:
            self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._library.NVMLError as error:
            return str(error)
        return None

    def watts(self) -> float:
        """Board power."""
        with nvml_errors_as_measurement_errors(self._library):
            return self._library.nvmlDeviceGetPowerUsage(self._handle) / 1000

    def busy_percent(self) -> float:
        """Share of the last sampling period in which a kernel ran."""
        with nvml_errors_as_measurement_errors(self._library):
            return float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def celsius(self) -> float | None:
        """Temperature of the chip; None where the card does not tell (some virtual GPUs)."""
        library = self._library
        return self._figure(lambda: library.nvmlDeviceGetTemperature(self._handle, library.NVML_TEMPERATURE_GPU))

    def sm_clock_mhz(self) -> float | None:
        """Clock of the multiprocessors at this moment; None where the card does not tell."""
        library = self._library
        return self._figure(lambda: library.nvmlDeviceGetClockInfo(self._handle, library.NVML_CLOCK_SM))

    def _figure(self, read: Callable[[], float]) -> float | None:
        try:
            return float(read())
        except self._library.NVMLError:
            return None

    def slowed(self) -> list[str]:
        """Why the device runs slower than it could at this moment: heat or the power supply; its power limit is no reason."""
        library = self._library
        try:
            reasons = library.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        except library.NVMLError:
            return []  # the card does not tell
        known = {
            "hardware slowdown": library.nvmlClocksEventReasonHwSlowdown,
            "software thermal slowdown": library.nvmlClocksEventReasonSwThermalSlowdown,
            "hardware thermal slowdown": library.nvmlClocksEventReasonHwThermalSlowdown,
            "power brake": library.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        }
        return [name for name, bit in known.items() if reasons & bit]

    def facts(self) -> dict[str, Any]:
        """What does not change between runs: driver, power limit in W, whether MIG is on."""
        library = self._library
        with nvml_errors_as_measurement_errors(library):
            try:
                mig = library.nvmlDeviceGetMigMode(self._handle)[0] == library.NVML_DEVICE_MIG_ENABLE
            except library.NVMLError:
                mig = False  # the card knows no MIG
            return {
                "driver": str(library.nvmlSystemGetDriverVersion()),
                "power_limit_w": library.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000,
                "mig": mig,
            }

    def other_processes(self) -> list[int]:
        """Process ids of other compute processes on the device.

        In a container the driver may number processes otherwise than this process does: ask before this process computes
        there, or it takes itself for another.
        """
        return sorted(pid for pid in self._processes() if pid != os.getpid())

    def process_bytes(self) -> int | None:
        """Bytes that this process holds on the device, its context and libraries included; None where NVML does not say."""
        return self._processes().get(os.getpid())

    def _processes(self) -> dict[int, int | None]:
        with nvml_errors_as_measurement_errors(self._library):
            found = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return {process.pid: process.usedGpuMemory for process in found}


@contextlib.contextmanager
def nvml_errors_as_measurement_errors(library: Any) -> Iterator[None]:
    """Turns a sensor that stops answering into one clear error."""
    try:
        yield
    except library.NVMLError as error:
        raise MeasurementError(f"the GPU's sensor stopped answering ({error}): measure the cell again") from error
