"""Identity of a training run: a checkpoint is resumed only by the run that wrote it."""

from functools import cache
from pathlib import Path
from typing import Any

from efficientllm.files import content_hash, sources_hash

_TRAINING_CODE = ("components", "data", "distributed", "models", "training", "tuning")


@cache
def code_hash(package: Path = Path(__file__).parent.parent) -> str:
    """Hash of those of a package's source files that decide what a training run computes."""
    return sources_hash(package, _TRAINING_CODE)


def fingerprint(**inputs: Any) -> str:
    """Hash of a run's inputs (JSON-serialisable parameters and hashes of its data) and of the training code."""
    return content_hash({"inputs": inputs, "code": code_hash()})
