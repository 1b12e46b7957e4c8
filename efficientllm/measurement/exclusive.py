"""Whether this process has the machine to itself, and what the machine draws while it waits."""

import time
from dataclasses import dataclass

from efficientllm.errors import MeasurementError
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.utilization import UtilizationMeter

BUSY_CORES = 0.5
"""Cores' worth of work of others from which on a CPU counts as shared."""
_LEAVING_S = 5.0  # for which a driver may still list a process that has ended


@dataclass(frozen=True)
class Idle:
    """The machine while this process does nothing.

    Args:
        watts: Mean power; None where the meter counts nothing then.
        missing: Why `watts` is None.
        others_cores: Cores' worth of work of other processes; None on a GPU, and where the system does not tell.
    """

    watts: float | None
    missing: str | None
    others_cores: float | None


def idle(seconds: float, meter: EnergyMeter, *, allow_shared: bool) -> Idle:
    """Takes the idle power, and on a CPU refuses to measure beside others' work.

    Args:
        seconds: Length of the window.
        meter: The process' energy meter.
        allow_shared: Measure all the same; the record then says so.

    Raises:
        MeasurementError: Others use the CPU's cores, and that is not allowed.
    """
    watts, missing, others = None, None, None
    try:
        with meter.window() as reading:
            if meter.nvml is None:
                with UtilizationMeter(None).window() as busy:
                    time.sleep(seconds)
                others = busy.others_cores
            else:
                time.sleep(seconds)
        watts, missing = (reading.watts, None) if reading.fault is None else (None, reading.fault)
    except MeasurementError as error:
        missing = str(error)
    if others is not None and others > BUSY_CORES and not allow_shared:
        raise MeasurementError(
            f"other processes keep {others:.1f} cores busy: end them, or set measure.allow_shared to true, which the "
            "record will say"
        )
    return Idle(watts, missing, others)


def check_exclusive(nvml: NvmlDevice | None, *, allow_shared: bool) -> list[int]:
    """Refuses a GPU that others compute on; to be asked before this process computes there.

    Args:
        nvml: The GPU's meters; a CPU is never a process' own, see `idle`.
        allow_shared: Measure all the same; the record then says so.

    Returns:
        Process ids of the others.

    Raises:
        MeasurementError: Others use the device, and that is not allowed.
    """
    deadline = time.perf_counter() + _LEAVING_S
    while (others := [] if nvml is None else nvml.other_processes()) and not allow_shared:
        if time.perf_counter() < deadline:
            time.sleep(0.2)
            continue
        raise MeasurementError(
            f"other processes compute on the GPU ({', '.join(map(str, others))}): end them, or set measure.allow_shared to "
            "true, which the record will say"
        )
    return others
