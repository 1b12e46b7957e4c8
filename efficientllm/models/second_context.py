"""A second CUDA context, made and given back: behind it the driver launches recorded graphs at the faster of its two speeds."""

import ctypes
import functools
import os
from typing import Any

import torch

_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


class _DriverError(Exception):
    """A call of the driver failed; the message is its name for that."""


def speed_up_replays(device: torch.device) -> str | None:
    """Has all graphs that are recorded now be launched at the driver's faster speed, until others are recorded.

    Behind a recording each kernel of any graph of the process begins about 0.35 us later than it could: 12 % of a decoding
    step of 100 million parameters (measured on an H200 with driver 580, docs/log.md). Once another context has been on the
    device, of whatever process, that is gone. Without this it would be by chance, when another program comes or goes, that
    one model decodes faster than another. NVIDIA documents neither. It takes 0.2 s, and device memory for that time.

    Args:
        device: The CUDA device, in use by this process.

    Returns:
        None, or why it could not be done.
    """
    if torch.version.hip is not None:
        return "not known of AMD's driver"
    kept, second, ordinal = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    try:
        driver = _driver()
        index = torch.cuda.current_device() if device.index is None else device.index
        _check(driver, driver.cuCtxGetCurrent(ctypes.byref(kept)))
        _check(driver, driver.cuDeviceGet(ctypes.byref(ordinal), index))
        try:
            _check(driver, driver.cuCtxCreate_v2(ctypes.byref(second), 0, ordinal))
            _check(driver, driver.cuCtxDestroy_v2(second))
        finally:
            _check(driver, driver.cuCtxSetCurrent(kept))
    except (OSError, AttributeError, _DriverError) as error:  # no library, one without such a call, a call that failed
        return str(error)
    return None


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL(_LIBRARY)


def _check(driver: Any, code: int) -> None:
    if code:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(name))
        raise _DriverError(name.value.decode() if name.value else f"CUDA error {code}")
