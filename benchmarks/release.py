"""Letting go of a model, so that the next one has the device to itself."""

import gc

import torch


def release(device: torch.device) -> None:
    """Frees what dropped models held, and starts the device's peak of memory anew.

    Compiled blocks hold on to their model, and PyTorch compiles only so many models' before it stops.
    """
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
