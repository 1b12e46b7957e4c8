"""Finds learning rates: trains each architecture, or each tuning method at a size, at several rates and seeds.

    python benchmarks/learning_rates.py --rows dense_medium,mamba --rates 3e-3,6e-3,1.2e-2 --seeds 0
    python benchmarks/learning_rates.py --size small --rows lora,pissa --rates 1e-3,3e-3

It prints the final held-out losses. It needs the prepared data (`dvc repro prepare`), for tuning the pretrained base too,
and reads params.yaml and its profile. One rate for all would be unfair: families differ in the rate that suits them. The
best rate of each row belongs in the profile, beside its sweep in docs/log.md.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from efficientllm.config import Configuration, load
from efficientllm.device import select_device
from efficientllm.errors import CellFailure
from efficientllm.models.build import build_decoder
from efficientllm.training.pretrain import pretraining_config, pretraining_trainer
from efficientllm.training.trainer import Trainer
from efficientllm.tuning.tune import prepare_model, tuning_trainer


def main() -> None:
    """Prints one line per row, with the held-out loss at each rate and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="comma-separated pretraining runs, or methods; default: all of params.yaml")
    parser.add_argument("--size", help="sweep tuning methods at this size instead of architectures")
    parser.add_argument("--rates", default="3e-3,6e-3,1.2e-2")
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    configuration = load()
    known = configuration.parameters.methods if arguments.size else list(configuration.parameters.architectures)
    rows = arguments.rows.split(",") if arguments.rows else known
    rates = [float(rate) for rate in arguments.rates.split(",")]
    for row in rows:
        losses = {
            rate: [
                _final_loss(configuration, row, arguments.size, rate, int(seed)) for seed in arguments.seeds.split(",")
            ]
            for rate in rates
        }
        best = min(losses, key=lambda rate: sum(losses[rate]))
        shown = "  ".join(f"{rate:g}: {'/'.join(f'{loss:.4f}' for loss in found)}" for rate, found in losses.items())
        print(f"{row:14s} best {best:g}   {shown}", flush=True)


def _final_loss(configuration: Configuration, row: str, size: str | None, rate: float, seed: int) -> float:
    """Trains one run as the pipeline does, at another rate and seed; infinite where it diverges."""
    parameters = configuration.parameters.model_copy(update={"seed": seed})
    seeded = Configuration(parameters, configuration.profile)
    device = select_device()
    if size is None:
        torch.manual_seed(seed)
        decoder = build_decoder(pretraining_config(seeded, row), device=device)
        trainer = pretraining_trainer(seeded, row, decoder, device)
    else:
        trainer = tuning_trainer(seeded, row, size, prepare_model(seeded, row, size, device), device)
    trainer = Trainer(dataclasses.replace(trainer.task, learning_rate=rate), trainer.settings, device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            progress = trainer.run(
                checkpoints=Path(folder), fingerprint="sweep", description=f"{row} at {rate:g}", joules=lambda: None
            )
        except CellFailure:
            return float("inf")
    return float(progress.curve[-1]["validation_loss"])


if __name__ == "__main__":
    main()
