"""A `pynvml` module over made-up GPUs, so that both this package's and CodeCarbon's own code run on it."""

import itertools
import time
import types
from dataclasses import dataclass, field
from types import SimpleNamespace


class NVMLError(Exception):
    """As pynvml's."""


class NotSupportedError(NVMLError):
    """As pynvml's `NVMLError_NotSupported`."""


def no_permission() -> NVMLError:
    return NVMLError("Insufficient Permissions")


def lost() -> NVMLError:
    return NVMLError("GPU is lost")


@dataclass
class Gpu:
    """A board whose energy is what a test lets it spend, or that draws a constant power; and counts it truly or not.

    Args:
        uuid: As NVML names it.
        watts: What it says that it draws.
        steady: Whether it really draws that, by the clock.
        counted: Share of its energy that its counter counts.
        offset_millijoules: Where its counter stands.
        period: Seconds between two moves of its counter; 0 moves with the energy.
        latency: Seconds by which its counter is late.
        broken: The error of the calls that fail, by their name without `nvmlDeviceGet`; `*` stands for all.
        processes: Bytes held, by process.
        reasons: Bits of the reasons for lower clocks.
    """

    uuid: str
    watts: float = 200.0
    steady: bool = False
    counted: float = 1.0
    offset_millijoules: int = 10**9
    period: float = 0.0
    latency: float = 0.0
    broken: dict[str, NVMLError] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)
    reasons: int = 0x4
    mig: bool = False
    joules: float = 0.0
    phases: list[tuple[float, float]] = field(default_factory=list)

    def draw(self, watts: float) -> None:
        """Draws another power from now on."""
        self.phases.append((time.perf_counter(), watts))

    def spend(self, joules: float) -> None:
        """Adds to the energy spent."""
        self.joules += joules

    def call(self, name: str) -> None:
        error = self.broken.get("*") or self.broken.get(name)
        if error is not None:
            raise error

    def millijoules(self) -> int:
        now = time.perf_counter() - self.latency
        if self.period:
            now -= now % self.period
        spent = self.joules + (self.watts * now if self.steady else 0.0)
        for (start, watts), (end, _) in itertools.pairwise([*self.phases, (float("inf"), 0.0)]):
            spent += watts * max(0.0, min(end, now) - start)
        return self.offset_millijoules + int(1000 * self.counted * spent)


def module(gpus: list[Gpu], *, initialises: bool = True) -> types.ModuleType:
    """Returns a module with the functions that this package and CodeCarbon call."""
    library = types.ModuleType("pynvml")

    def query(name: str, answer):  # type: ignore[no-untyped-def]
        def ask(gpu: Gpu, *arguments: object) -> object:
            gpu.call(name)
            return answer(gpu)

        setattr(library, f"nvmlDeviceGet{name}", ask)

    def initialise() -> None:
        if not initialises:
            raise NVMLError("Driver Not Loaded")

    def by_uuid(uuid: str) -> Gpu:
        for gpu in gpus:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError("Not Found")

    query("TotalEnergyConsumption", Gpu.millijoules)
    query("PowerUsage", lambda gpu: int(1000 * gpu.watts))
    query("UtilizationRates", lambda gpu: SimpleNamespace(gpu=80, memory=10))
    query("ClockInfo", lambda gpu: 1755)
    query("Temperature", lambda gpu: 55)
    query("EnforcedPowerLimit", lambda gpu: 700_000)
    query("ComputeRunningProcesses", lambda gpu: [
        SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in gpu.processes.items()
    ])  # fmt: skip
    query("GraphicsRunningProcesses", lambda gpu: [])
    query("CurrentClocksEventReasons", lambda gpu: gpu.reasons)
    query("MigMode", lambda gpu: (int(gpu.mig), int(gpu.mig)))
    query("Name", lambda gpu: "NVIDIA Made-up")
    query("UUID", lambda gpu: gpu.uuid)
    query("Index", gpus.index)
    query("MemoryInfo", lambda gpu: SimpleNamespace(total=80 * 2**30, free=70 * 2**30, used=10 * 2**30))
    query("ComputeMode", lambda gpu: 0)
    functions = {
        "nvmlInit": initialise,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "NVMLError": NVMLError,
        "NVMLError_NotSupported": NotSupportedError,
        "NVML_DEVICE_MIG_ENABLE": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_CLOCK_SM": 1,
        "nvmlClocksEventReasonHwSlowdown": 0x8,
        "nvmlClocksEventReasonSwThermalSlowdown": 0x20,
        "nvmlClocksEventReasonHwThermalSlowdown": 0x40,
        "nvmlClocksEventReasonHwPowerBrakeSlowdown": 0x80,
    }
    for name, value in functions.items():
        setattr(library, name, value)
    return library
