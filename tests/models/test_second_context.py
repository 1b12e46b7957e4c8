"""The second context with which the driver is brought to its faster speed: what is called, what is left behind, what is said."""

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm.models import second_context
from efficientllm.models.cuda_graphs import record
from efficientllm.models.second_context import speed_up_replays

DEVICE = torch.device("cuda", 1)
OUT_OF_MEMORY = 2


class FakeDriver:
    """The driver's calls: `current` is the thread's context, `alive` those that exist, `ordinal` the device of the second."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.current, self.alive, self.ordinal = 7, {7}, -1
        names = ("cuCtxGetCurrent", "cuDeviceGet", "cuCtxCreate_v2", "cuCtxDestroy_v2", "cuCtxSetCurrent")
        for name in names:
            setattr(self, name, lambda *arguments, name=name: self._call(name, *arguments))

    def _call(self, name: str, *arguments: Any) -> int:
        if name == self.failing:
            return OUT_OF_MEMORY
        if name == "cuCtxGetCurrent":
            arguments[0]._obj.value = self.current
        elif name == "cuDeviceGet":
            arguments[0]._obj.value = arguments[1]
        elif name == "cuCtxCreate_v2":
            arguments[0]._obj.value = self.current = 8
            self.ordinal = arguments[2].value
            self.alive.add(8)
        elif name == "cuCtxDestroy_v2":
            self.alive.discard(arguments[0].value)
            self.current = 0
        elif name == "cuCtxSetCurrent":
            self.current = arguments[0].value
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = {OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY"}[code]
        return 0


@pytest.fixture(autouse=True)
def without_a_kept_library() -> Iterator[None]:
    second_context._driver.cache_clear()
    yield
    second_context._driver.cache_clear()


def test_the_second_context_is_of_the_device_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(second_context, "_driver", lambda: driver)
    assert speed_up_replays(DEVICE) is None
    assert (driver.ordinal, driver.alive, driver.current) == (1, {7}, 7)


@pytest.mark.parametrize("failing", ["cuCtxGetCurrent", "cuDeviceGet", "cuCtxCreate_v2", "cuCtxDestroy_v2"])
def test_a_failure_is_said_and_leaves_the_context_in_use(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(failing)
    monkeypatch.setattr(second_context, "_driver", lambda: driver)
    assert speed_up_replays(DEVICE) == "CUDA_ERROR_OUT_OF_MEMORY"
    assert driver.current == 7


def test_a_machine_without_the_driver_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_context, "_LIBRARY", "libno-driver.so.1")
    assert "libno-driver.so.1" in (speed_up_replays(DEVICE) or "")


def test_a_driver_without_the_call_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert "cuCtxGetCurrent" in (speed_up_replays(DEVICE) or "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_work_goes_on_behind_it() -> None:
    device = torch.device("cuda")
    value = torch.zeros(1000, device=device)
    (replay,) = record([lambda: value.add_(1)], device)  # type: ignore[list-item]
    value.zero_()
    replay()
    assert speed_up_replays(device) is None
    replay()
    assert torch.equal(value, torch.full_like(value, 2))
    assert torch.equal(value @ value, torch.tensor(4000.0, device=device))
