"""NVIDIA's management library: the device's own meters, by the CUDA device that the process uses."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from efficientllm.errors import MeasurementError

if TYPE_CHECKING:
    import torch


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

    def joules(self) -> float | None:
        """Energy counter since the driver was loaded; None where the device has none (before Volta)."""
        try:
            return self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except self._library.NVMLError:
            return None

    def watts(self) -> float:
        """Board power."""
        with nvml_errors_as_measurement_errors(self._library):
            return self._library.nvmlDeviceGetPowerUsage(self._handle) / 1000

    def busy_percent(self) -> float:
        """Share of the last sampling period in which a kernel ran."""
        with nvml_errors_as_measurement_errors(self._library):
            return float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu)

    def celsius(self) -> float:
        """Temperature of the chip."""
        with nvml_errors_as_measurement_errors(self._library):
            return float(self._library.nvmlDeviceGetTemperature(self._handle, self._library.NVML_TEMPERATURE_GPU))

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
        """Process ids of other compute processes on the device."""
        found = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return sorted(process.pid for process in found if process.pid != os.getpid())


@contextlib.contextmanager
def nvml_errors_as_measurement_errors(library: Any) -> Iterator[None]:
    """Turns a sensor that stops answering into one clear error."""
    try:
        yield
    except library.NVMLError as error:
        raise MeasurementError(f"the GPU's sensor stopped answering ({error}): measure the cell again") from error
