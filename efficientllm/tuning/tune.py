"""Tuning of one pretrained size by one method, and loading of what it stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efficientllm import paths
from efficientllm.bases.base import base_folder
from efficientllm.config import Configuration
from efficientllm.data.manifest import MANIFEST_FILE
from efficientllm.data.order import batch_positions
from efficientllm.data.prompts import EncodedExample, collate, encode_split, few_widths, fitting_width
from efficientllm.device_lock import claimed
from efficientllm.errors import ArtifactError
from efficientllm.files import file_hash, read_json, whole_directory, write_json
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import RANDOM_FILE, WEIGHTS_FILE, has_random_weights, load_decoder
from efficientllm.registry import cell_name
from efficientllm.training.fingerprint import fingerprint
from efficientllm.training.losses import EVALUATION_BATCH, mean_loss
from efficientllm.training.recorded_gradients import Batch
from efficientllm.training.run import train
from efficientllm.training.telemetry import write_untrained
from efficientllm.training.trainer import Trainer, TrainingTask, compiles_blocks
from efficientllm.tuning.method import TunableModel, tuning_method

_DESCRIPTION = "tuning.json"
_JUDGED_BATCHES = 1000
"""Batches at the start of a training by whose lengths the widths of compiled programs are chosen."""


def prepare_model(configuration: Configuration, method: str, size: str, device: torch.device) -> TunableModel:
    """Loads the base of a size and makes it ready for a method, with the run's seed."""
    implementation = tuning_method(method)
    torch.manual_seed(configuration.parameters.seed)
    options = implementation.options(configuration.profile.tune.methods[method])
    dtype = getattr(torch, configuration.profile.tune.base_type)
    return implementation.prepare(base_folder(size), options, device=device, dtype=dtype)


def tuning_trainer(
    configuration: Configuration, method: str, size: str, model: TunableModel, device: torch.device
) -> Trainer:
    """Sets up the training of a prepared model on the instruction task.

    Every method sees the same examples in the same order, in batches of the same size; so does every size, unless
    `tune.training.batch_sizes` gives each its own.

    Args:
        configuration: The run's parameters.
        method: The tuning method.
        size: The base model's size, which selects the learning rate.
        model: What `prepare_model` returned.
        device: Where the model lies.
    """
    settings = configuration.profile.tune.training.for_size(size)
    method_settings = configuration.profile.tune.methods[method]
    implementation = tuning_method(method)
    base = base_folder(size)
    examples = encode_split(paths.DATA, "train", settings.sequence_length, tokenizer_folder=base)
    held_out = encode_split(paths.DATA, "validation", settings.sequence_length, tokenizer_folder=base)
    held_out = held_out[: settings.evaluation_sequences]

    def examples_of(index: int) -> list[EncodedExample]:
        order = batch_positions(len(examples), settings.batch_size, index, configuration.parameters.seed)
        return [examples[position] for position in order]

    widths, each_shape = list[int](), [0]
    if compiles_blocks(settings, device):
        count = min(settings.steps * settings.gradient_accumulation, _JUDGED_BATCHES)
        longest = [max(len(example.token_ids) for example in examples_of(index)) for index in range(count)]
        widths = few_widths(longest)
        taken = [fitting_width(length, widths) for length in longest]
        each_shape = [taken.index(width) for width in dict.fromkeys(taken)]

    def batch(index: int) -> Batch:
        return collated(examples_of(index), widths)

    task = TrainingTask(
        model=model.module,
        decoder=model.decoder,
        batch=batch,
        evaluate=lambda: answer_loss(model.decoder, held_out, device),
        groups=lambda: implementation.groups(model, implementation.options(method_settings), settings),
        learning_rate=getattr(method_settings.learning_rate, size),
        each_shape=each_shape,
    )
    return Trainer(task, settings, device)


def collated(examples: Sequence[EncodedExample], widths: Sequence[int] = ()) -> Batch:
    """Pads examples to a batch of inputs and labels `[B, T]`; prompts and padding bear no loss."""
    inputs, labels = collate(examples, widths=widths)
    return torch.from_numpy(inputs)[:, :-1], torch.from_numpy(labels)[:, 1:]


def answer_loss(decoder: Decoder, examples: Sequence[EncodedExample], device: torch.device) -> float:
    """Mean cross-entropy in nats per answer token."""
    starts = range(0, len(examples), EVALUATION_BATCH)
    batches = (collated(examples[start : start + EVALUATION_BATCH]) for start in starts)
    return mean_loss(decoder, ((inputs.to(device), labels.to(device)) for inputs, labels in batches))


def tune(configuration: Configuration, method: str, size: str) -> None:
    """Tunes one size by one method and writes what the method stores, and the run's telemetry.

    Args:
        configuration: The run's parameters.
        method: Key of the tuning method.
        size: `small`, `medium` or `large`.

    Raises:
        CellFailure: The loss diverged, or the hardware lacks the number type.
        ArtifactError: The base model or the task is missing or damaged.
    """
    settings, cell = configuration.profile.tune, cell_name(method, size)
    description = {"method": method, "size": size, "base_type": settings.base_type}
    if configuration.profile.random_weights:
        # what a method would store is as random as its base, and may be as large: it is made where it is measured
        with whole_directory(paths.artifact("tune", cell)) as folder:
            write_json(folder / _DESCRIPTION, description)
            write_json(folder / RANDOM_FILE, {"seed": configuration.parameters.seed})
        write_untrained(paths.telemetry("tune", cell))
        return
    with claimed(f"tune@{cell}", alone=False) as device:
        _tune(configuration, method, size, description, device)


def _tune(
    configuration: Configuration, method: str, size: str, description: dict[str, str], device: torch.device
) -> None:
    settings, cell = configuration.profile.tune, cell_name(method, size)
    model = prepare_model(configuration, method, size, device)
    trainer = tuning_trainer(configuration, method, size, model, device)
    identity = fingerprint(
        training=trainer.settings.model_dump(), base_type=settings.base_type, method=settings.methods[method].model_dump(), cell=cell,
        seed=configuration.parameters.seed, data=file_hash(paths.DATA / MANIFEST_FILE),
        base=file_hash(base_folder(size) / WEIGHTS_FILE),
    )  # fmt: skip

    def save() -> None:
        with whole_directory(paths.artifact("tune", cell)) as folder:
            tuning_method(method).save(model, folder)
            write_json(folder / _DESCRIPTION, description)

    inputs, _ = trainer.task.batch(0)
    train(trainer, "tune", cell, identity, float(inputs.numel()), save)


def load_tuned(folder: Path, *, device: Any = "cpu") -> Decoder:
    """Loads a tuned model for inference, its adapters merged; with random weights, its base, which has the same shape.

    Raises:
        ArtifactError: The folder holds no tuned model, or a damaged one.
    """
    description = read_json(folder / _DESCRIPTION)
    try:
        method, size, base_type = (str(description[key]) for key in ("method", "size", "base_type"))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / _DESCRIPTION} lacks {error}: run `dvc repro` again") from error
    dtype = getattr(torch, base_type)
    if has_random_weights(folder):
        return load_decoder(base_folder(size), device=device, dtype=dtype).requires_grad_(False).eval()
    return tuning_method(method).load(folder, base_folder(size), device=device, dtype=dtype)
