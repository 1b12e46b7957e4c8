"""Checkpoints of a training run: one safetensors file, replaced atomically, that says which run it belongs to.

Several processes write one file too: the first gathers every tensor in its host memory. So a run can be taken up by any
number of processes, with any strategy, and only the first one needs to see the file.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from efficientllm.distributed import world
from efficientllm.files import write_bytes
from efficientllm.models.weights import tensors_hash

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
    """Writes trainable weights, optimizer state and random state; the file on disk is always a whole one.

    Where several processes train, all of them have to call this.
    """
    tensors = {f"model.{name}": value.detach() for name, value in _trainable(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    contiguous = {}
    for name, value in tensors.items():
        gathered = _whole(value)
        if world.is_first():
            contiguous[name] = gathered.cpu().contiguous()
    if world.is_first():
        metadata = {"fingerprint": fingerprint, "progress": json.dumps(progress.__dict__)}
        metadata["sha256"] = _checksum(metadata["progress"], contiguous)
        write_bytes(folder / _FILE, save(contiguous, metadata=metadata))


def load_checkpoint(
    folder: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Progress | None:
    """Restores a run in place. Where several processes train, all of them have to call this.

    Args:
        folder: The cell's checkpoint folder.
        fingerprint: Hash of the run's parameters, data and code; a checkpoint of another run is left alone.
        model: Receives the trainable weights.
        optimizer: Receives its state.
        device: Where the model lies.

    Returns:
        The progress, or None where there is no usable checkpoint of this run: none was written, it belongs to other
        parameters, or it is damaged. Then training starts from the beginning, and the run says why.
    """
    content = _read(folder / _FILE, fingerprint) if world.is_first() else None
    others = world.current()
    if others is not None:
        content = _from_first(content, others, device)
    if content is None:
        return None
    progress, tensors = content
    _restore(tensors, model, optimizer)
    if others is not None and not others.is_first:
        torch.manual_seed(progress.step * others.size + others.rank)  # the file's random state is the first process'
    return progress


def _read(path: Path, fingerprint: str) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["fingerprint"] != fingerprint:
                print(f"{path} belongs to other parameters, data or code: starting from step 0")
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata["sha256"] != _checksum(metadata["progress"], tensors):
            raise ValueError("it does not fit its checksum")
        return Progress(**json.loads(metadata["progress"])), tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        print(f"{path} is damaged ({error}): starting from step 0")
        return None


def _checksum(progress: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of what a checkpoint holds: the format has none, and a flipped bit would train on."""
    return hashlib.sha256(f"{progress} {tensors_hash(tensors)}".encode()).hexdigest()


def _from_first(
    content: tuple[Progress, dict[str, torch.Tensor]] | None, others: world.World, device: torch.device
) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """Sends what the first process has read to the others."""
    header = b""
    if content is not None:
        header = json.dumps({"progress": content[0].__dict__, "tensors": _layout(content[1])}).encode()
    header = others.from_first(header, device)
    if not header:
        return None
    found = json.loads(header)
    tensors = {}
    for name, (shape, dtype) in found["tensors"].items():
        own = content[1][name] if content is not None else torch.empty(shape, dtype=getattr(torch, dtype))
        tensors[name] = others.tensor_from_first(own, device)
    return Progress(**found["progress"]), tensors


def _layout(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[list[int], str]]:
    return {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def _restore(tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(_placed(tensors[f"model.{name}"], parameter))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = _placed(value, trained[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"].cpu())
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"].cpu())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if world.current() is None:
        return tensor
    from efficientllm.distributed.strategies import whole

    return whole(tensor)


def _placed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor as this process holds the parameter that it belongs to: itself, or its shard."""
    if world.current() is None:
        return tensor
    from efficientllm.distributed.strategies import sharded_like

    return sharded_like(tensor, like)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
