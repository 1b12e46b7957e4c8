"""A short training that tests start in one process or several: `python -m tests.distributed.job '{...}'`."""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from efficientllm.config.schema import MethodSettings, ParallelSettings, Profile, TrainingSettings
from efficientllm.data.packing import IGNORED
from efficientllm.distributed import world
from efficientllm.distributed.launch import train_in_parallel
from efficientllm.errors import CellFailure
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import save_decoder
from efficientllm.training.losses import token_losses
from efficientllm.training.optimizer import parameter_groups
from efficientllm.training.trainer import Batch, Trainer, TrainingTask
from efficientllm.tuning.method import TunableModel, tuning_method
from tests.models.conftest import FAMILIES, config_of

ROWS = {**FAMILIES, "moe": {"feedforward": "moe"}, "frozen": {"mixer": "gqa"}, "dora": {"mixer": "gqa"}}

SETTINGS = TrainingSettings(
    sequence_length=16, batch_size=4, gradient_accumulation=2, steps=6, warmup_steps=2, final_learning_rate_fraction=0.1,
    embedding_learning_rate_scale=3.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="none",
    compile="none", evaluation_steps=3, evaluation_sequences=4, checkpoint_seconds=1e-9,
)  # fmt: skip


def batch(index: int) -> Batch:
    """Sequences of which some positions bear no loss, unevenly, as prompts do not."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(61, (SETTINGS.batch_size, SETTINGS.sequence_length + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    for row in range(len(labels)):
        labels[row, : 3 * row] = IGNORED
    return tokens[:, :-1], labels


def trainer(order: dict[str, Any]) -> Trainer:
    torch.manual_seed(0)
    config: DecoderConfig = config_of(**ROWS[order["family"]])
    decoder = build_decoder(config)
    if order["family"] == "frozen":
        decoder.embed_tokens.requires_grad_(False)
        decoder.layers[0].requires_grad_(False)
    model = adapted(decoder) if order["family"] == "dora" else TunableModel(decoder, decoder)

    def evaluate() -> float:
        inputs, labels = batch(1000)
        return float(token_losses(model.decoder(inputs).logits, labels).sum() / (labels != IGNORED).sum())

    task = TrainingTask(
        model.module, model.decoder, batch, evaluate, lambda: parameter_groups(model.module, SETTINGS), 1e-2
    )
    settings = SETTINGS.model_copy(update={key: order[key] for key in ("steps", "compile") if key in order})
    return Trainer(task, settings, torch.device("cpu"))


def adapted(decoder: Decoder) -> TunableModel:
    """The decoder as a frozen base with DoRA, whose forward pass reads weights past the modules that hold them."""
    dora, rates = tuning_method("dora"), {"small": 1e-2, "medium": 1e-2, "large": 1e-2}
    settings = MethodSettings.model_validate({"learning_rate": rates, "rank": 2, "alpha": 4, "dropout": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        save_decoder(Path(folder), decoder)
        return dora.prepare(Path(folder), dora.options(settings))


def run(order: dict[str, Any]) -> None:
    """Trains each family in turn, and lets the first process write losses, gradient norms and weights."""
    for family in order["families"]:
        train_one({**order, "family": family}, Path(order["folder"]) / family)


def train_one(order: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prepared = trainer(order)
    results: list[dict[str, float]] = []
    step = prepared.step

    def noted(index: int) -> Any:
        here = prepared.world.rank if prepared.world is not None else 0
        if order.get("dies") == [here, index]:
            os.kill(os.getpid(), signal.SIGKILL)
        if order.get("terminated") == [here, index]:
            os.kill(os.getpid(), signal.SIGTERM)
        if order.get("fails") == [here, index]:
            raise CellFailure("out of memory: made up")
        result = step(index)
        results.append({"step": index, "loss": float(result.loss), "norm": float(result.gradient_norm)})
        return result

    prepared.step = noted  # type: ignore[method-assign]
    progress = prepared.run(
        checkpoints=folder / "checkpoint", fingerprint="one", description="job", joules=lambda: None
    )
    validation = [row["validation_loss"] for row in progress.curve if row["validation_loss"] is not None]
    prepared.gather()
    if world.is_first():
        weights = {name: value.flatten().tolist() for name, value in prepared.task.model.state_dict().items()}
        content = {"steps": results, "validation": validation, "weights": weights, "resumed": progress.resumed}
        (folder / "result.json").write_text(json.dumps(content))


def main() -> None:
    order = json.loads(sys.argv[1])
    parallel = ParallelSettings(strategy=order["strategy"], processes=order["processes"])
    profile = Profile.model_construct(random_weights=False, parallel=parallel)
    train_in_parallel(profile, SETTINGS, "tests.distributed.job", sys.argv[1:], lambda: run(order))


if __name__ == "__main__":
    main()
