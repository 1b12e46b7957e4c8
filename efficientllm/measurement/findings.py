"""What has been measured of a cell so far."""

from dataclasses import dataclass, field
from typing import Any

from efficientllm.records import ModelFacts, Value


@dataclass
class Findings:
    """What has been measured of a cell so far."""

    model: ModelFacts
    kernels: dict[str, str]
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    information: dict[str, Any] = field(default_factory=dict)
