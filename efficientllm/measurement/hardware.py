"""What machine this is: `hardware.json`, on which every measurement depends.

It holds nothing volatile (no time, clock, temperature, free memory, host name), so that it is the same file on the same
machine: then nothing is measured again, and on another machine everything is.
"""

import contextlib
import platform
import sys
from pathlib import Path
from typing import Any

from efficientllm.device import allowed_cores
from efficientllm.files import write_json

_RAPL = Path("/sys/class/powercap")
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


def describe(hardware: dict[str, Any]) -> list[str]:
    """Says in words what will be measured here, what modelled, and how to get the rest."""
    cpu, gpus = hardware["cpu"], hardware["gpus"]
    lines = [
        f"CPU      {cpu['model']}, {cpu['allowed_cores']:g} allowed cores, {hardware['ram_limit_gib']:g} GiB of memory",
        f"torch    {hardware['software']['torch']}, Python {hardware['software']['python']}",
    ]
    for gpu in gpus:
        limit = "" if gpu["power_limit_w"] is None else f", power limit {gpu['power_limit_w']:g} W"
        lines.append(f"GPU      {gpu['name']}, {gpu['memory_gib']:g} GiB, driver {gpu['driver']}{limit}")
        works = gpu["energy_counter"]
        if works["agrees_with_power"]:
            lines.append("energy   measured: NVML's energy counter works and agrees with integrated power")
        else:
            lines.append(f"energy   the GPU's energy counter cannot be trusted: {works['reason']}")
    if not gpus:
        lines.append("GPU      none: models are trained and measured on the CPU")
        if cpu["rapl"]["readable"]:
            lines.append("energy   measured: the CPU package, by RAPL")
        else:
            lines += [
                f"energy   modelled from the CPU's load, and marked so ({cpu['rapl']['reason']})",
                "         to measure it on bare-metal Linux: sudo chmod -R a+r /sys/class/powercap/intel-rapl*",
            ]
    lines.append("RAM      energy always modelled by CodeCarbon; kept apart from the ranked figure")
    lines.append(f"types    {', '.join(cpu['instruction_sets']) or 'no vector extension known'}")
    return lines


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
    with contextlib.suppress(OSError, ValueError):
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
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
