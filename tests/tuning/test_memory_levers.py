"""Recomputed activations change nothing but memory; the 8-bit optimizer keeps a quarter of the bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.config.schema import MethodSettings, TrainingSettings
from efficientllm.errors import CellFailure
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.weights import save_decoder
from efficientllm.training.optimizer import state_bytes
from efficientllm.training.trainer import Trainer, TrainingTask
from efficientllm.tuning.method import tuning_method

INPUTS = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = DecoderConfig(
        vocabulary_size=64, hidden_size=64, layers=2, heads=4, key_value_heads=2, intermediate_size=128,
        context_length=32, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    save_decoder(folder, build_decoder(config))
    return folder


def trainer(method: str, base: Path, device: str = "cpu", **levers: Any) -> Trainer:
    """A method at rank 64, so that its matrices have the 4096 elements from which bitsandbytes quantizes states."""
    options = {} if method == "full" else {"rank": 64, "alpha": 64, "dropout": 0.1}
    rates = {"small": 0.01, "medium": 0.01, "large": 0.01}
    implementation = tuning_method(method)
    checked = implementation.options(MethodSettings.model_validate({"learning_rate": rates, **options}))
    torch.manual_seed(3)
    model = implementation.prepare(base, checked, device=device)
    training = TrainingSettings(
        sequence_length=16, batch_size=4, gradient_accumulation=1, steps=4, warmup_steps=1,
        final_learning_rate_fraction=1.0, embedding_learning_rate_scale=1.0, weight_decay=0.0, beta1=0.9, beta2=0.95,
        gradient_clip=1.0, autocast="none", compile="none", evaluation_steps=4, evaluation_sequences=2,
        checkpoint_seconds=1000.0, **levers,
    )  # fmt: skip
    task = TrainingTask(
        model.module, model.decoder, lambda index: (INPUTS[:, :-1], INPUTS[:, 1:]), lambda: 0.0,
        lambda: implementation.groups(model, checked, training), 0.01,
    )  # fmt: skip
    made = Trainer(task, training, torch.device(device))
    model.module.train()
    return made


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_recomputation_gives_the_same_training(method: str, base: Path) -> None:
    """Bit for bit, the dropped entries of the adapters' inputs included."""

    def losses(recompute: bool) -> list[float]:
        made = trainer(method, base, recompute_activations=recompute)
        torch.manual_seed(5)
        return [float(made.step(index).loss.detach()) for index in range(4)]

    plain = losses(False)
    assert losses(True) == plain
    assert plain[-1] < plain[0]


def test_the_8_bit_optimizer_refuses_a_cpu(base: Path) -> None:
    with pytest.raises(CellFailure, match="adamw_8bit, which needs a CUDA GPU: set it to adamw"):
        trainer("lora", base, optimizer="adamw_8bit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_8_bit_optimizer_keeps_a_quarter(method: str, base: Path) -> None:
    found = {}
    for optimizer in ("adamw", "adamw_8bit"):
        made = trainer(method, base, "cuda", optimizer=optimizer)
        losses = [float(made.step(index).loss.detach()) for index in range(4)]
        assert losses[-1] < losses[0]
        found[optimizer] = state_bytes(made.optimizer)
    assert 0.2 < found["adamw_8bit"] / found["adamw"] < 0.4


def test_optimizer_bytes_by_hand(base: Path) -> None:
    """Two float32 moments of each trained number and a step count of each tensor; what is shared counts once."""
    made = trainer("lora", base)
    made.step(0)
    trained = [p for group in made.optimizer.param_groups for p in group["params"]]
    assert state_bytes(made.optimizer) == sum(2 * p.nbytes for p in trained) + 4 * len(trained)
    shared = torch.zeros(256)
    for state in made.optimizer.state.values():
        state["table"] = shared
    assert state_bytes(made.optimizer) == sum(2 * p.nbytes for p in trained) + 4 * len(trained) + 1024
