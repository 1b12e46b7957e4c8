"""The order in which a cell's meters are made."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm import preload_server
from efficientllm.measurement import cell
from efficientllm.measurement.exclusive import Idle


def test_the_idle_process_holds_the_libraries_and_the_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported or made after the memory meter counts as memory of the cell."""
    events: list[str] = []

    class ReachedError(Exception):
        pass

    def idle(*_: Any, **__: Any) -> Idle:
        events.append("idle")
        return Idle(1.0, None, None)

    def memory(*_: Any) -> None:
        events.append("memory")
        raise ReachedError

    monkeypatch.setattr(preload_server.importlib, "import_module", events.append)
    monkeypatch.setattr(cell, "EnergyMeter", lambda *_, **__: events.append("energy"))
    monkeypatch.setattr(cell, "idle", idle)
    monkeypatch.setattr(cell, "MemoryMeter", memory)
    measure = SimpleNamespace(allow_shared=True, idle_seconds=0.0, country_iso_code="USA")
    configuration: Any = SimpleNamespace(profile=SimpleNamespace(measure=measure))
    with pytest.raises(ReachedError):
        cell._measure(configuration, "tune", "lora-small", {}, torch.device("cpu"))
    *libraries, energy, quiet, held = events
    assert (energy, quiet, held) == ("energy", "idle", "memory")
    assert {"codecarbon", "transformers.modeling_utils", "peft"} <= set(libraries)
