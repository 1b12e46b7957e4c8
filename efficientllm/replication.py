"""Training of a cell once more from another seed: how far apart two runs of the same technique come out."""

import shutil
from typing import Any

import torch

from efficientllm import paths, registry
from efficientllm.bases.base import base_folder
from efficientllm.config import Configuration
from efficientllm.data.manifest import MANIFEST_FILE
from efficientllm.device_lock import claimed
from efficientllm.errors import CellFailure
from efficientllm.files import check_directory, content_hash, file_hash
from efficientllm.measurement.quality import perplexity_values, task_values
from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import WEIGHTS_FILE
from efficientllm.records import Replica, Value, write_record
from efficientllm.stage import cell_errors, failure
from efficientllm.training.fingerprint import fingerprint
from efficientllm.training.pretrain import pretraining_config, pretraining_trainer
from efficientllm.training.trainer import Trainer
from efficientllm.tuning.tune import prepare_model, tuning_trainer


def replicate(configuration: Configuration, axis: registry.TrainedAxis, cell: str, seed: int) -> None:
    """Trains a cell from another seed and writes its quality; the model is not kept.

    The seed decides the initial weights (of the adapters, for tuning) and the order of the data.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.
        seed: Another seed than the run's.
    """
    destination = paths.replica(axis, cell, seed)
    try:
        with cell_errors(), claimed(f"{axis}@{cell}, seed {seed}", alone=False) as device:
            values = _quality(configuration, axis, cell, seed, device)
    except CellFailure as error:
        write_record(destination, Replica(axis=axis, cell=cell, seed=seed, status="failed", reason=str(error)))
        print(f"{axis}@{cell} with seed {seed} failed, and is recorded as failed: {error}")
        return
    write_record(destination, Replica(axis=axis, cell=cell, seed=seed, status="ok", metrics=values))


def _quality(
    configuration: Configuration, axis: registry.TrainedAxis, cell: str, seed: int, device: torch.device
) -> dict[str, Value]:
    parameters = configuration.parameters.model_copy(update={"seed": seed})
    seeded = Configuration(parameters, configuration.profile)
    check_directory(paths.DATA)
    decoder, trainer, origin = (_pretraining if axis == "pretrain" else _tuning)(seeded, cell, device)
    checkpoints = paths.checkpoint(f"replica-{axis}", f"{cell}-{seed}")
    trainer.prepare()
    trainer.run(
        checkpoints=checkpoints,
        fingerprint=fingerprint(
            training=trainer.settings.model_dump(), rate=trainer.task.learning_rate, seed=seed, cell=cell,
            profile=content_hash(configuration.profile.model_dump()), data=file_hash(paths.DATA / MANIFEST_FILE), **origin,
        ),
        description=f"{axis}@{cell}, seed {seed}",
        joules=lambda: None,
    )  # fmt: skip
    decoder = decoder.requires_grad_(False).eval()
    if axis == "pretrain":
        values, _ = perplexity_values(configuration, decoder, device)
    else:
        base = base_folder(registry.technique_and_size(cell)[1])
        values, _ = perplexity_values(configuration, decoder, device, base)
        scored, _, _ = task_values(configuration, decoder, device, base)
        values |= scored
    shutil.rmtree(checkpoints, ignore_errors=True)
    return values


def _pretraining(
    configuration: Configuration, cell: str, device: torch.device
) -> tuple[Decoder, Trainer, dict[str, Any]]:
    """The model, its trainer, and what else decides how the run goes on."""
    torch.manual_seed(configuration.parameters.seed)
    config = pretraining_config(configuration, cell)
    decoder = build_decoder(config, device=device)
    return decoder, pretraining_trainer(configuration, cell, decoder, device), {"model": config.to_dict()}


def _tuning(configuration: Configuration, cell: str, device: torch.device) -> tuple[Decoder, Trainer, dict[str, Any]]:
    """The same of a tuned model."""
    method, size = registry.technique_and_size(cell)
    base = base_folder(size)
    if (reason := failure(base)) is not None:
        raise CellFailure(f"{base} failed: {reason}")
    model = prepare_model(configuration, method, size, device)
    origin = {"base": file_hash(base / WEIGHTS_FILE)}
    return model.decoder, tuning_trainer(configuration, method, size, model, device), origin
