"""A training run from its first step, or its last checkpoint, to its artifact and its telemetry."""

import shutil
from collections.abc import Callable

from efficientllm import paths
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.training.telemetry import write_telemetry
from efficientllm.training.trainer import Trainer


def train(
    trainer: Trainer, axis: str, cell: str, identity: str, tokens_per_step: float, save: Callable[[], None]
) -> None:
    """Trains, saves the model, writes the telemetry, and only then drops the checkpoint.

    Args:
        trainer: The prepared run.
        axis: `pretrain` or `tune`.
        cell: The cell's name.
        identity: Fingerprint of the run; see `fingerprint`.
        tokens_per_step: Training tokens of one optimizer step, for the curve.
        save: Writes the model's artifact.
    """
    meter = EnergyMeter(trainer.device)
    with meter.running() as reading:
        progress = trainer.run(
            checkpoints=paths.checkpoint(axis, cell),
            fingerprint=identity,
            description=f"{axis}@{cell}",
            joules=reading.joules,
        )
    save()
    hardware = {"device": meter.device_name, "energy_method": meter.method, "energy_source": meter.source}
    write_telemetry(paths.telemetry(axis, cell), progress, tokens_per_step, hardware)
    shutil.rmtree(paths.checkpoint(axis, cell), ignore_errors=True)
