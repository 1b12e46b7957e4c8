"""Checkpoints of a training run: one safetensors file, replaced atomically, that says which run it belongs to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from efficientllm.files import write_bytes

_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        step: Optimizer steps done.
        curve: The curve's rows so far.
        seconds: Training time so far, over all processes that worked on the run.
        joules: Energy so far, or None where it could not be read.
        resumed: How often the run was taken up from a checkpoint.
    """

    step: int
    curve: list[dict[str, Any]]
    seconds: float
    joules: float | None
    resumed: int


def save_checkpoint(
    folder: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Writes trainable weights, optimizer state and random state; the file on disk is always a whole one."""
    tensors = {f"model.{name}": value.detach() for name, value in _trainable(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    metadata = {"fingerprint": fingerprint, "progress": json.dumps(progress.__dict__)}
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_bytes(folder / _FILE, save(contiguous, metadata=metadata))


def load_checkpoint(
    folder: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Restores a run in place.

    Args:
        folder: The cell's checkpoint folder.
        fingerprint: Hash of the run's parameters, data and code; a checkpoint of another run is left alone.
        model: Receives the trainable weights.
        optimizer: Receives its state.

    Returns:
        The progress, or None where there is no usable checkpoint of this run: none was written, it belongs to other
        parameters, or it is damaged. Then training starts from the beginning, and the run says why.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["fingerprint"] != fingerprint:
                print(f"{path} belongs to other parameters, data or code: starting from step 0")
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        print(f"{path} is damaged ({error}): starting from step 0")
        return None
    _restore(tensors, model, optimizer)
    return Progress(**json.loads(metadata["progress"]))


def _restore(tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
