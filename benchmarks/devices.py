"""The device of a benchmark: its name, its meters, and its memory between two models."""

import gc

import torch

from efficientllm.errors import MeasurementError
from efficientllm.measurement.nvml import NvmlDevice


def name_of(device: torch.device) -> str:
    """The GPU's name, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def meters_of(device: torch.device) -> NvmlDevice | None:
    """The GPU's meters; None on a CPU, and where NVML cannot be used, of which a line is printed."""
    if device.type != "cuda":
        return None
    try:
        return NvmlDevice.of(device)
    except MeasurementError as error:
        print(f"no energy: {error}")
        return None


def release(device: torch.device) -> None:
    """Frees what dropped models held, and starts the device's peak of memory anew.

    Compiled blocks hold on to their model, and PyTorch compiles only so many models' before it stops.
    """
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
