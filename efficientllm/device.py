"""The device that a process computes on, its allowed cores, and the number types that it can use."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efficientllm.errors import CellFailure

if TYPE_CHECKING:
    import torch

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def allowed_cores() -> float:
    """Cores that this process may use: the affinity mask, cut by the cgroup's CPU quota (a container's limit)."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def select_device() -> "torch.device":
    """Returns the CUDA device where there is one, else the CPU with as many threads as cores are allowed."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(allowed_cores())))
    return torch.device("cpu")


def to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Moves a tensor without waiting for what a GPU has yet to do.

    From ordinary memory CUDA copies more than 64 KiB only when the GPU has come that far, and the host, which should be
    launching the next step's kernels meanwhile, waits for it.

    Args:
        tensor: In host memory, or on the device already.
        device: Where it is wanted.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


def synchronize(device: "torch.device") -> None:
    """Waits until the device has done what was launched; a CPU has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def has_dependent_launch(device: "torch.device") -> bool:
    """Whether a kernel can be set up while the one before it ends (programmatic dependent launch: Hopper and later)."""
    import torch

    nvidia = device.type == "cuda" and torch.version.hip is None  # AMD's devices go by the same name
    return nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def autocast_type(setting: Literal["auto", "none", "bfloat16"], device: "torch.device") -> "torch.dtype | None":
    """Resolves the `autocast` parameter to the type of mixed-precision training.

    Args:
        setting: `auto` takes bfloat16 on a GPU that computes in it, and float32 elsewhere.
        device: Where the model is trained.

    Returns:
        The type, or None for float32 throughout.

    Raises:
        CellFailure: bfloat16 is demanded where the GPU cannot compute in it.
    """
    import torch

    if setting == "none" or (setting == "auto" and device.type != "cuda"):
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if setting == "auto":
            return None
        raise CellFailure(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: set autocast to none")
    return torch.bfloat16
