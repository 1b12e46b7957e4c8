"""What machine this is: `hardware.json`, on which every measurement depends.

It holds nothing volatile (no time, clock, temperature, free memory, host name), so that it is the same file on the same
machine: then nothing is measured again, and on another machine everything is.
"""

import contextlib
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllm.device import allowed_cores
from efficientllm.errors import ArtifactError
from efficientllm.files import read_json, write_json

if TYPE_CHECKING:
    import torch

_RAPL = Path("/sys/class/powercap")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_TYPES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def probe() -> dict[str, Any]:
    """Describes the machine that this process may use."""
    import torch

    return {
        "cpu": {
            "model": cpu_model(),
            "allowed_cores": allowed_cores(),
            "instruction_sets": _instruction_sets(),
            "rapl": _rapl(),
        },
        "ram_limit_gib": round(_ram_limit() / 1024**3, 1),
        "system": {"platform": sys.platform, "machine": platform.machine()},
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def write_hardware(path: Path, hardware: dict[str, Any]) -> None:
    """Writes the description as strict JSON."""
    write_json(path, hardware)


def read_hardware(path: Path) -> dict[str, Any]:
    """Reads a description that `probe` made.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    hardware = read_json(path)
    parts = {"cpu": dict, "gpus": list, "software": dict, "system": dict}
    if not isinstance(hardware, dict) or not all(isinstance(hardware.get(key), kind) for key, kind in parts.items()):
        raise ArtifactError(f"{path} describes no machine: run `dvc repro -f -s probe`")
    return hardware


def describe(hardware: dict[str, Any]) -> list[str]:
    """Says in words what will be measured here, what modelled, what is missing, and how to get the rest."""
    cpu, gpus, software = hardware["cpu"], hardware["gpus"], hardware["software"]
    cuda = f", CUDA {software['cuda']}" if software["cuda"] else ""
    lines = [
        f"CPU      {cpu['model']}, {cpu['allowed_cores']:g} allowed cores, {hardware['ram_limit_gib']:g} GiB of memory",
        f"types    {', '.join(cpu['instruction_sets']) or 'no vector extension known'}",
        f"torch    {software['torch']}{cuda}, Python {software['python']}",
    ]
    lines += [line for gpu in gpus for line in _describe_gpu(gpu)] or _describe_no_gpu(hardware)
    return [
        *lines,
        "RAM      energy always modelled by CodeCarbon; kept apart from the ranked figure",
        "CO2e     derived: joules times the mean intensity of the grid of measure.country_iso_code, from CodeCarbon's tables",
    ]


def _describe_gpu(gpu: dict[str, Any]) -> list[str]:
    from efficientllm.measurement.utilization import peak_flops

    limit = "" if gpu["power_limit_w"] is None else f", power limit {gpu['power_limit_w']:g} W"
    lines = [f"GPU      {gpu['name']}, {gpu['memory_gib']:g} GiB, driver {gpu['driver']}{limit}"]
    counter = gpu["energy_counter"]
    if counter["agrees_with_power"]:
        lines.append("energy   measured: NVML's energy counter works and agrees with integrated power")
    else:
        lines.append(f"energy   DOUBTFUL: {counter['reason']}; records will say so")
    if gpu["mig"]:
        lines.append("         MIG is on: energy and busy share are those of the whole board, not of this instance")
    known = peak_flops(gpu["name"], "bfloat16") is not None
    lines.append("memory   measured: CUDA's allocator; what the process holds, where the driver tells")
    lines.append("busy     measured: NVML's busy share, which says that a kernel ran, not how well")
    lines.append(
        f"MFU      {'derived from the dense peak of this GPU' if known else 'missing: no dense peak is known for this GPU'}"
        + ("" if known else "; add it to efficientllm/measurement/utilization.py")
    )
    return lines


def _describe_no_gpu(hardware: dict[str, Any]) -> list[str]:
    lines = ["GPU      none: models are trained and measured on the CPU"]
    if hardware["software"]["cuda"] is None and Path("/proc/driver/nvidia").exists():
        lines.append(
            "         there is an NVIDIA driver, but this torch is a CPU build: python3 scripts/setup.py sets up a CUDA build"
        )
    rapl = hardware["cpu"]["rapl"]
    if rapl["readable"]:
        lines.append("energy   measured: the CPU package, by RAPL")
    else:
        lines += [
            f"energy   modelled from the CPU's load, and marked so ({rapl['reason']})",
            "         to measure it on bare-metal Linux: sudo chmod -R a+r /sys/class/powercap/intel-rapl*",
            "         (until the next start; a rule for udev keeps it; in a virtual machine the host has to offer RAPL)",
        ]
    return [
        *lines,
        "memory   measured: the process' resident set above the idle process",
        "busy     measured: CPU time over wall time and allowed cores",
        "MFU      missing: no peak is known for a CPU",
    ]


def sensor_doubt(hardware: dict[str, Any], device: "torch.device") -> str | None:
    """Why the energy counter of a device is not to be trusted, by the probe's self-test; None where nothing is known.

    Args:
        hardware: The content of hardware.json.
        device: Where a cell runs.
    """
    if device.type != "cuda" or not hardware["gpus"]:
        return None
    reason: str | None = hardware["gpus"][device.index or 0]["energy_counter"]["reason"]
    return None if reason is None else f"the energy counter failed the probe's self-test: {reason}"


def cpu_model() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                return [name for name in _TYPES if name in flags]
    return []


def _rapl() -> dict[str, Any]:
    counters = sorted(_RAPL.glob("intel-rapl:*/energy_uj"))
    if not counters:
        return {"readable": False, "reason": "this system shows no RAPL counter, as is usual in virtual machines"}
    try:
        for counter in counters:
            int(counter.read_text(encoding="ascii"))
    except OSError as error:
        return {"readable": False, "reason": f"no permission to read {counters[0]} ({error.strerror})"}
    return {"readable": True, "reason": None}


def _ram_limit() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(limit.read_text(encoding="ascii")))
    return total


def _gpu(index: int) -> dict[str, Any]:
    import torch

    from efficientllm.measurement.selftest import energy_counter_works

    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 1024**3, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }
    return facts | energy_counter_works(device)
