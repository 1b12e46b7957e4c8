"""The models that are measured: how each axis' cells are identified, loaded, trained on, and weighed."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientllm import paths, registry
from efficientllm.bases.base import base_folder
from efficientllm.config import Configuration
from efficientllm.device import autocast_type
from efficientllm.errors import ArtifactError
from efficientllm.measurement.safetensors_header import tensor_bytes
from efficientllm.models.accounting import (
    bytes_in_memory,
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
)
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import has_random_weights, load_decoder, read_config
from efficientllm.quantization.quantize import load_quantized, tuned_folder
from efficientllm.records import ModelFacts
from efficientllm.training.pretrain import pretraining_trainer
from efficientllm.training.trainer import Trainer
from efficientllm.tuning.method import tuning_method
from efficientllm.tuning.tune import load_tuned, prepare_model, tuning_trainer

REFERENCE_PRECISION = "bfloat16"
"""What the other precisions are compared with."""


def identity(configuration: Configuration, axis: registry.Axis, cell: str) -> tuple[str, str]:
    """Returns technique and size of a cell."""
    if axis == "pretrain":
        return cell, configuration.architecture(cell)[0].size
    return registry.technique_and_size(cell)


def sources(configuration: Configuration, axis: registry.Axis, size: str) -> list[Path]:
    """Folders beside a cell's own artifact that measuring it reads."""
    base = [] if axis == "pretrain" else [base_folder(size)]
    return [paths.DATA, *base, *([tuned_folder(configuration, size)] if axis == "quantize" else [])]


def load(configuration: Configuration, axis: registry.Axis, cell: str, device: torch.device) -> Decoder:
    """Loads a cell's model for inference: a trained one in the type of its training's matrix products.

    Raises:
        ArtifactError: The artifact is missing or damaged.
        CellFailure: The hardware lacks the cell's type.
    """
    folder = paths.artifact(axis, cell)
    if axis == "quantize":
        return load_quantized(folder, device=device)
    profile = configuration.profile
    training = (profile.pretrain if axis == "pretrain" else profile.tune).training
    dtype = autocast_type(training.autocast, device)
    if axis == "pretrain":
        decoder = load_decoder(folder, device=device, dtype=dtype).requires_grad_(False).eval()
        decoder.select_kernel(profile.architectures[cell].kernel)
        return decoder
    decoder = load_tuned(folder, device=device)
    return decoder if dtype is None else decoder.to(dtype)


def reference(configuration: Configuration, size: str, device: torch.device) -> Decoder:
    """Loads the model that the quantized cells of a size are compared with: the tuned one, cast to bfloat16.

    Adapters are merged on the CPU, as when a precision is stored: another device rounds the sums otherwise, and a model
    would then differ from the stored bfloat16 one by more than its precision.
    """
    return load_tuned(tuned_folder(configuration, size)).to(device, getattr(torch, REFERENCE_PRECISION))


def trainer(configuration: Configuration, axis: registry.Axis, cell: str, device: torch.device) -> Trainer:
    """Sets a cell's training up anew: its artifact's weights, a fresh optimizer, its own batch.

    A tuning cell starts from the base model with fresh adapters, as its training did.
    """
    if axis == "pretrain":
        decoder = load_decoder(paths.artifact(axis, cell), device=device).requires_grad_(True)
        return pretraining_trainer(configuration, cell, decoder, device)
    technique, size = identity(configuration, axis, cell)
    model = prepare_model(configuration, technique, size, device)
    return tuning_trainer(configuration, technique, size, model, device)


@dataclass(frozen=True)
class TrainingState:
    """What the training of a cell moves and holds.

    Args:
        parameters: Parameters that are trained.
        parameter_bytes: Their bytes.
        optimizer_bytes: What the optimizer keeps beside them.
        lengths: Tokens of the sequences of each micro-batch of the measured step, padding included.
        scored: Share of its tokens that bear loss.
    """

    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    lengths: tuple[int, ...]
    scored: float


def facts(
    configuration: Configuration, axis: registry.Axis, cell: str, decoder: Decoder, state: TrainingState | None
) -> ModelFacts:
    """Counts parameters, bytes and operations of a cell's model.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.
        decoder: The model as it is served.
        state: What its training moves; None where it is not trained.
    """
    counts = count_parameters(decoder.config)
    element = decoder.embed_tokens.weight.element_size()
    return ModelFacts(
        parameters_total=counts.total,
        parameters_active=counts.active,
        parameters_trainable=0 if state is None else state.parameters,
        bytes_on_disk=_bytes_on_disk(configuration, axis, cell, decoder, state),
        bytes_in_memory=bytes_in_memory(decoder),
        bytes_optimizer=None if state is None else state.optimizer_bytes,
        cache_bytes_per_token=cache_bytes_per_token(decoder.config, element),
        flops_per_token=_flops(configuration, decoder, state),
    )


def _bytes_on_disk(
    configuration: Configuration, axis: registry.Axis, cell: str, decoder: Decoder, state: TrainingState | None
) -> int:
    """Bytes of the stored tensors; with random weights, of those that would be stored."""
    if not configuration.profile.random_weights:
        return stored_bytes(paths.artifact(axis, cell))
    if axis == "tune" and state is not None:
        return state.parameter_bytes * tuning_method(identity(configuration, axis, cell)[0]).stored_per_trained
    return bytes_in_memory(decoder)


def _flops(configuration: Configuration, decoder: Decoder, state: TrainingState | None) -> float:
    """FLOPs per token of a full training step, or per generated token at the middle of the served output.

    Counted is what a step computes: a head for the tokens that bear loss alone, which in tuning are the answers'.
    """
    if state is None:
        measure = configuration.profile.measure
        context = measure.serving_prompt_length + measure.serving_output_length / 2
        return flops_per_token(decoder.config, [context], training=False)
    # the sequences of a micro-batch are all of one length, and the micro-batches of one number of sequences
    total = sum(
        length * flops_per_token(decoder.config, range(1, length + 1), training=True, scored=state.scored) * count
        for length, count in Counter(state.lengths).items()
    )
    return total / sum(state.lengths)


def stored_bytes(folder: Path) -> int:
    """Bytes of all tensors that an artifact stores, without the files' headers.

    Raises:
        ArtifactError: The folder holds no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no .safetensors file: run `dvc repro` again")
    return sum(tensor_bytes(path) for path in files)


def base_bytes(configuration: Configuration, size: str) -> int:
    """Bytes of the full weights that a size is tuned from, or would be stored where they are random."""
    folder = base_folder(size)
    if has_random_weights(folder):
        element: int = getattr(torch, configuration.profile.tune.base_type).itemsize
        return count_parameters(read_config(folder)).total * element
    return stored_bytes(folder)
