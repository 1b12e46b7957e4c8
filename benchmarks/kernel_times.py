"""Where the time of a call goes on a GPU: its kernels' seconds by kind, and the seconds in which none ran."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

_KINDS = (
    ("attention", r"flash|fmha|sdpa|cudnn.*attn|flex_attention|triton_tem_fused"),
    ("sparse attention", r"_banded|_selected|_group_weights"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|_mm|wgmma|splitK"),
    ("optimizer and clipping", r"multi_tensor|adam|foreach|lpnorm"),
    ("sorting and searching", r"sort|radix|searchsorted|scan|topk|bitonic"),
    ("compiled elementwise", r"^triton_"),
    ("copies and fills", r"memcpy|memset|copy|fill"),
)
_CALLS = 2
_LISTED = 12


def print_kernel_times(call: Callable[[], object], device: torch.device) -> None:
    """Profiles a call that has been warmed up, and prints its kernels' times by kind and the longest of them.

    Args:
        call: What is profiled.
        device: Where it runs; on a CPU there are no kernels, and a line says so.
    """
    if device.type != "cuda":
        print("    no kernels to profile on a CPU")
        return
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        started = time.perf_counter()
        for _ in range(_CALLS):
            call()
        torch.cuda.synchronize()
        wall = 1000 * (time.perf_counter() - started) / _CALLS
    kernels = [
        (event.key, event.self_device_time_total / 1000 / _CALLS, event.count // _CALLS)
        for event in profiled.key_averages()
        if event.self_device_time_total
    ]
    kinds: dict[str, float] = defaultdict(float)
    for name, milliseconds, _ in kernels:
        kinds[kind_of(name)] += milliseconds
    busy = sum(kinds.values())
    print(
        f"    {wall:.1f} ms per step while profiled; kernels {busy:.1f} ms, none running {max(0.0, wall - busy):.1f} ms"
    )
    for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"      {kind:24s} {milliseconds:8.2f} ms")
    for name, milliseconds, count in sorted(kernels, key=lambda kernel: -kernel[1])[:_LISTED]:
        print(f"        {milliseconds:8.2f} ms {count:5d} x {name[:110]}", flush=True)


def kind_of(name: str) -> str:
    """Returns the kind of work that a kernel of this name does."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def kernels_of(trainer: Any) -> str:
    """Names the kernels that a `Trainer` takes, but for PyTorch's plain ones."""
    return "; ".join(f"{part}: {name}" for part, name in trainer.kernels().items() if name != "plain PyTorch")
