"""What has been measured of a cell so far."""

import time
from dataclasses import dataclass, field
from typing import Any

from efficientllm.records import ModelFacts, Value


class Laps:
    """Where the seconds of a cell's measuring go, phase by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """Books the time since the last phase's end to this one."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


@dataclass
class Findings:
    """What has been measured of a cell so far."""

    model: ModelFacts
    kernels: dict[str, str]
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    information: dict[str, Any] = field(default_factory=dict)
    laps: Laps = field(default_factory=Laps)
