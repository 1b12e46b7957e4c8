"""The device's memory bandwidth, measured: the roof that decoding stands under."""

import functools
import statistics
import time
from dataclasses import dataclass

import torch

from efficientllm.device import synchronize

_BYTES = {"cuda": 1 << 30, "cpu": 128 << 20}
"""Larger than any cache, and on a GPU long enough that launching the copy does not count."""

_SECONDS = {"cuda": 0.2, "cpu": 0.08}
_LEAST_COPIES = 3
_MOST_OF_FREE_MEMORY = 0.25


@dataclass(frozen=True)
class Bandwidth:
    """A measured bandwidth.

    Args:
        bytes_per_second: Bytes read plus bytes written per second, the median over copies.
        buffer_bytes: Size of the copied buffer.
        copies: Timed copies.
    """

    bytes_per_second: float
    buffer_bytes: int
    copies: int


@functools.cache
@torch.inference_mode()
def copy_bandwidth(device: torch.device) -> Bandwidth:
    """Copies a large buffer, twice untimed and then for a while; measured once per process and device.

    Args:
        device: A CUDA device or the CPU, there with PyTorch's threads.

    Raises:
        OutOfMemoryError: Not even the buffers fit.
    """
    size = _BYTES[device.type]
    if device.type == "cuda":
        size = min(size, int(torch.cuda.mem_get_info(device)[0] * _MOST_OF_FREE_MEMORY / 2))
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    for _ in range(2):  # touches every page, and lets clocks rise
        target.copy_(source)
    synchronize(device)
    times: list[float] = []
    while len(times) < _LEAST_COPIES or sum(times) < _SECONDS[device.type]:
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return Bandwidth(2 * source.nbytes / statistics.median(times), source.nbytes, len(times))
