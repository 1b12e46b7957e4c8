"""Figures of several processes as those of one run: joules and tokens add up, memory is that of each device."""

from dataclasses import dataclass

import torch

from efficientllm.distributed.world import World, summed
from efficientllm.measurement.memory import GIB


def own_joules(joules: float | None, world: World, device: torch.device) -> float | None:
    """What a process contributes to the sum: its GPU's joules; of the processes that share a CPU only the first's."""
    return joules if device.type == "cuda" or world.local_rank == 0 else 0.0


def total_joules(joules: float | None, world: World, device: torch.device) -> float | None:
    """Joules of all devices and machines; None where one of them cannot be read. To be called by all processes."""
    return summed(world.gathered(own_joules(joules, world, device), device))


@dataclass(frozen=True)
class DeviceMemory:
    """Peak memory of the devices.

    Args:
        highest: That of the fullest device, in GiB.
        mean: Mean over devices, in GiB.
    """

    highest: float
    mean: float


def device_memory(peaks_gib: list[float | None]) -> DeviceMemory | None:
    """Summarizes the devices' peaks; None where one is unknown."""
    known = [peak for peak in peaks_gib if peak is not None]
    return DeviceMemory(max(known), sum(known) / len(known)) if known and len(known) == len(peaks_gib) else None


def peak_gib(device: torch.device) -> float | None:
    """Peak of this process' allocated GPU memory; None on a CPU, where processes share what they load."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
