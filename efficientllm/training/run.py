"""A training run from its first step, or its last checkpoint, to its artifact and its telemetry."""

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from efficientllm import paths
from efficientllm.device_lock import others_meanwhile
from efficientllm.distributed.totals import device_memory, peak_gib, total_joules
from efficientllm.garbage import existing_objects_exempt
from efficientllm.measurement.energy import EnergyMeter, RunningEnergy
from efficientllm.training.telemetry import write_telemetry
from efficientllm.training.trainer import Trainer


def train(
    trainer: Trainer, axis: str, cell: str, identity: str, tokens_per_step: float, save: Callable[[], None]
) -> None:
    """Trains, saves the model, writes the telemetry, and only then drops the checkpoint.

    Where several processes train, all of them call this, and the first one writes.

    Args:
        trainer: The prepared run.
        axis: `pretrain` or `tune`.
        cell: The cell's name.
        identity: Fingerprint of the run; see `fingerprint`.
        tokens_per_step: Training tokens of one optimizer step, for the curve.
        save: Writes the model's artifact.
    """
    trainer.prepare()
    gc.collect()  # or what was dropped while the model was built would be kept for the whole training
    meter = EnergyMeter(trainer.device)
    others = trainer.world
    with existing_objects_exempt(), meter.running() as reading:
        progress = trainer.run(
            checkpoints=paths.checkpoint(axis, cell),
            fingerprint=identity,
            description=f"{axis}@{cell}",
            joules=reading.joules if others is None else lambda: _joules_of_all(reading, trainer),
        )
    hardware: dict[str, Any] = {
        "device": meter.device_name,
        "energy_method": meter.method,
        "energy_source": meter.source,
        "energy_fault": reading.fault,
        "shared_with": others_meanwhile(),
    }
    if others is not None:
        hardware["parallel"] = _parallel_facts(trainer)
        trainer.gather()
        if not others.is_first:
            return
    save()
    write_telemetry(paths.telemetry(axis, cell), progress, tokens_per_step, hardware)
    shutil.rmtree(paths.checkpoint(axis, cell), ignore_errors=True)


def _joules_of_all(reading: RunningEnergy, trainer: Trainer) -> float | None:
    assert trainer.world is not None
    return total_joules(reading.joules(), trainer.world, trainer.device)


def _parallel_facts(trainer: Trainer) -> dict[str, Any]:
    """What the processes were, and the memory of their devices."""
    assert trainer.world is not None
    memory = device_memory(trainer.world.gathered(peak_gib(trainer.device), trainer.device))
    return {
        "strategy": trainer.world.strategy,
        "processes": trainer.world.size,
        "memory_peak_gib": None if memory is None else asdict(memory),
    }
