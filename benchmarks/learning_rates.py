"""Finds learning rates: trains each architecture, or each tuning method at a size, at several rates and seeds.

    python benchmarks/learning_rates.py --rows dense_medium,mamba --rates 3e-3,6e-3,1.2e-2 --seeds 0
    python benchmarks/learning_rates.py --size small --rows lora,pissa --rates 1e-3,3e-3

It prints the final held-out losses. It needs the prepared data (`dvc repro prepare`), for tuning the pretrained base too,
and reads params.yaml and its profile. One rate for all would be unfair: families differ in the rate that suits them. The
best rate of each row belongs in the profile, beside its sweep in docs/log.md. With --out each training is added to a CSV as
it ends; the same command goes on where it was cut short. --extend goes on beyond an end of the rates that is the best.
Several GPUs: a process each, with rows and a file of its own.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from command_line import add_out, new_parser, positive, require_known, several, whole
from devices import release
from table import read_table, write_table

from efficientllm.config import Configuration, load
from efficientllm.device import select_device
from efficientllm.errors import CellFailure
from efficientllm.models.build import build_decoder
from efficientllm.registry import SIZES
from efficientllm.training.pretrain import pretraining_config, pretraining_trainer
from efficientllm.training.trainer import Trainer
from efficientllm.tuning.tune import prepare_model, tuning_trainer


def main() -> None:
    """Prints one line per row, with the held-out loss at each rate and seed."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--rows", type=several(str), help="pretraining runs or, with --size, methods; default: all of params.yaml"
    )
    parser.add_argument(
        "--size", choices=SIZES, help="size at which methods are swept; default: pretraining runs are swept instead"
    )
    parser.add_argument("--rates", type=several(positive), default="3e-3,6e-3,1.2e-2", help="learning rates")
    parser.add_argument("--seeds", type=several(whole(0)), default="0", help="seeds, each of a training of its own")
    parser.add_argument(
        "--extend", type=whole(0), default=0, metavar="N", help="try up to N rates beyond an end that is best"
    )
    add_out(parser, resumes=True)
    arguments = parser.parse_args()
    configuration = load()
    rates, seeds = arguments.rates, arguments.seeds
    if arguments.size:
        known, rows = list(configuration.profile.tune.methods), configuration.parameters.methods
    else:
        known = rows = list(configuration.parameters.architectures)
    rows = arguments.rows or rows
    require_known(parser, "--rows", rows, known)
    trained = Trained(configuration, arguments.size, arguments.out)
    for row in rows:
        losses = {rate: [trained.loss(row, rate, seed) for seed in seeds] for rate in rates}
        for _ in range(arguments.extend):
            if (further := _beyond(losses)) is None:
                break
            losses[further] = [trained.loss(row, further, seed) for seed in seeds]
        losses = dict(sorted(losses.items()))
        best = _best(losses)
        shown = "  ".join(f"{rate:g}: {'/'.join(f'{loss:.4f}' for loss in found)}" for rate, found in losses.items())
        print(f"{row:14s} best {best:g}   {shown}", flush=True)


def _best(losses: dict[float, list[float]]) -> float:
    return min(losses, key=lambda rate: sum(losses[rate]))


def _beyond(losses: dict[float, list[float]]) -> float | None:
    """The next rate beyond the end at which the best one lies, at the distance of the two there; None where it lies inside."""
    rates, best = sorted(losses), _best(losses)
    if len(rates) > 1 and best == rates[0]:
        return float(f"{rates[0] ** 2 / rates[1]:.3g}")
    if len(rates) > 1 and best == rates[-1]:
        return float(f"{rates[-1] ** 2 / rates[-2]:.3g}")
    return None


class Trained:
    """Final losses, of which those that a file already has are not trained again.

    Args:
        configuration: The run's parameters.
        size: Of the tuned models; None for architectures.
        path: The file, if any.
    """

    def __init__(self, configuration: Configuration, size: str | None, path: Path | None) -> None:
        self._configuration = configuration
        self._size = size
        self._path = path
        self._rows = read_table(path) if path else []

    def loss(self, row: str, rate: float, seed: int) -> float:
        """Trains one run, unless it is known."""
        training = (
            self._configuration.profile.tune.training if self._size else self._configuration.profile.pretrain.training
        )
        asked = {
            "profile": self._configuration.parameters.profile, "size": self._size or "-", "row": row, "rate": rate, "seed": seed,
            "steps": training.steps,
        }  # fmt: skip
        for known in self._rows:
            if all(known.get(name) == value for name, value in asked.items()):
                return float(known["loss"])
        begun = time.monotonic()
        loss = _final_loss(self._configuration, row, self._size, rate, seed)
        release(select_device())
        self._rows.append(asked | {"loss": loss, "seconds": round(time.monotonic() - begun, 1)})
        if self._path:
            write_table(self._path, self._rows)
        return loss


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
