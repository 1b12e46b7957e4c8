"""Pretraining of one architecture from random weights."""

from pathlib import Path

import torch

from efficientllm import paths
from efficientllm.config import Configuration
from efficientllm.data.manifest import MANIFEST_FILE, read_manifest
from efficientllm.data.packing import evaluation_windows, open_split, training_batch
from efficientllm.data.tokenizer import copy_tokenizer
from efficientllm.device_lock import claimed
from efficientllm.distributed.world import is_first
from efficientllm.files import file_hash, whole_directory
from efficientllm.models.build import build_decoder, decoder_config
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import save_decoder, save_random
from efficientllm.training.fingerprint import fingerprint
from efficientllm.training.losses import EVALUATION_BATCH, mean_loss
from efficientllm.training.optimizer import parameter_groups
from efficientllm.training.recorded_gradients import Batch
from efficientllm.training.run import train
from efficientllm.training.telemetry import write_untrained
from efficientllm.training.trainer import Trainer, TrainingTask


def pretraining_config(configuration: Configuration, name: str) -> DecoderConfig:
    """Returns the decoder configuration of a pretraining run: its components, at the size of the prepared vocabulary."""
    choice, settings, shape = configuration.architecture(name)
    return decoder_config(choice, settings, shape, read_manifest(paths.DATA)["vocabulary_size"])


def pretraining_trainer(configuration: Configuration, name: str, decoder: Decoder, device: torch.device) -> Trainer:
    """Sets up the training of a decoder on the packed training split.

    Args:
        configuration: The run's parameters.
        name: The pretraining run, which decides the learning rate.
        decoder: The model, on `device`.
        device: Where to train.

    Returns:
        A trainer whose data order depends on the seed alone, so that all architectures see the same batches.
    """
    settings = configuration.profile.pretrain.training
    tokens = open_split(paths.DATA, "train")
    held_out = evaluation_windows(open_split(paths.DATA, "validation"), settings.sequence_length)
    held_out = held_out[:: max(1, len(held_out) // settings.evaluation_sequences)][: settings.evaluation_sequences]

    def batch(index: int) -> Batch:
        window = torch.from_numpy(
            training_batch(
                tokens,
                seed=configuration.parameters.seed,
                step=index,
                batch_size=settings.batch_size,
                sequence_length=settings.sequence_length,
            )
        )
        return window[:, :-1], window[:, 1:]

    def evaluate() -> float:
        starts = range(0, len(held_out), EVALUATION_BATCH)
        windows = (torch.as_tensor(held_out[start : start + EVALUATION_BATCH], device=device) for start in starts)
        return mean_loss(decoder, ((window[:, :-1].clamp_min(0), window[:, 1:]) for window in windows))

    own = configuration.profile.architectures[name]
    decoder.select_kernel(own.kernel)
    task = TrainingTask(
        decoder, decoder, batch, evaluate, lambda: parameter_groups(decoder, settings), own.learning_rate
    )
    return Trainer(task, settings, device)


def pretrain(configuration: Configuration, name: str) -> None:
    """Pretrains one architecture and writes its model and its telemetry; with random weights, just its description.

    Args:
        configuration: The run's parameters.
        name: The pretraining run, a key of `architectures` in params.yaml.

    Raises:
        CellFailure: The loss diverged, or the hardware lacks the number type.
        ArtifactError: The prepared data is missing or damaged.
    """
    settings, seed = configuration.profile.pretrain.training, configuration.parameters.seed
    config = pretraining_config(configuration, name)
    if configuration.profile.random_weights:
        with whole_directory(paths.artifact("pretrain", name)) as folder:
            save_random(folder, config, seed)
            copy_tokenizer(paths.DATA, folder)
        write_untrained(paths.telemetry("pretrain", name))
        return
    with claimed(f"pretrain@{name}", alone=False) as device:
        torch.manual_seed(seed)
        decoder = build_decoder(config, device=device)
        trainer = pretraining_trainer(configuration, name, decoder, device)
        if is_first():
            print("; ".join(f"{part}: {kernel}" for part, kernel in trainer.kernels().items()))
        identity = fingerprint(
            model=config.to_dict(), training=settings.model_dump(), seed=seed,
            learning_rate=trainer.task.learning_rate, data=file_hash(paths.DATA / MANIFEST_FILE),
        )  # fmt: skip
        tokens = settings.batch_size * settings.gradient_accumulation * settings.sequence_length
        train(trainer, "pretrain", name, identity, tokens, lambda: _save(decoder, paths.artifact("pretrain", name)))


def _save(decoder: Decoder, destination: Path) -> None:
    with whole_directory(destination) as folder:
        save_decoder(folder, decoder)
        copy_tokenizer(paths.DATA, folder)
