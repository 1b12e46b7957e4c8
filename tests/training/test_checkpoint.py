"""A run that is killed and resumed ends bit for bit where an undisturbed run ends."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efficientllm.config.schema import TrainingSettings
from efficientllm.data.order import batch_positions
from efficientllm.data.packing import IGNORED
from efficientllm.errors import CellFailure, Terminated
from efficientllm.models.build import build_decoder
from efficientllm.training.optimizer import learning_rate_at, parameter_groups
from efficientllm.training.trainer import Trainer, TrainingTask
from tests.models.conftest import FAMILIES, config_of

SETTINGS = TrainingSettings(
    sequence_length=8, batch_size=2, gradient_accumulation=2, steps=12, warmup_steps=3,
    final_learning_rate_fraction=0.1, embedding_learning_rate_scale=3.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="none",
    evaluation_steps=4, evaluation_sequences=2, checkpoint_seconds=1e-9,
)  # fmt: skip


class TinyModel(nn.Module):
    """An embedding, dropout (so that the random state matters) and a head."""

    balances_experts = False

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 8)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 16, bias=False)

    def hidden_states_and_loss(self, inputs: torch.Tensor, balanced: None) -> tuple[torch.Tensor, None]:
        return self.norm(self.dropout(self.embed_tokens(inputs))), None

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden)
        return logits


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def trainer(kill_at: int | None = None, rate: float = 0.01) -> Trainer:
    torch.manual_seed(0)
    model = TinyModel()

    def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == kill_at:
            raise Killed
        window = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(index))
        return window[:, :-1], window[:, 1:]

    task = TrainingTask(model, model, batch, lambda: 1.0, lambda: parameter_groups(model, SETTINGS), rate)
    return Trainer(task, SETTINGS, torch.device("cpu"))


def run(subject: Trainer, folder: Path, fingerprint: str = "a") -> Any:
    return subject.run(checkpoints=folder, fingerprint=fingerprint, description="test", joules=lambda: 1.0)


def losses(progress: Any) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in progress.curve]


@pytest.mark.parametrize("kill_at", [2, 13, 23])
def test_resumed_run_equals_undisturbed_run(tmp_path: Path, kill_at: int, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trainer()
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(trainer(kill_at), tmp_path / "killed")
    resumed = trainer()
    found = run(resumed, tmp_path / "killed")
    assert f"resuming test at step {kill_at // 2} of 12" in capsys.readouterr().out
    assert losses(found) == losses(expected)
    assert found.resumed == 1
    assert found.joules == 2.0, "the killed process' energy counts"
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, resumed.task.model.state_dict()[name]), name


@pytest.mark.parametrize("stop_at", [0, 13, 23])
def test_terminated_run_is_saved_at_once(tmp_path: Path, stop_at: int) -> None:
    """Batch 23 is of the last step: all is done then but the saving of the model."""
    whole = trainer()
    expected = run(whole, tmp_path / "whole")
    stopped = trainer()
    stopped.settings = SETTINGS.model_copy(update={"checkpoint_seconds": 3600.0})
    batch = stopped.task.batch

    def signalled(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(index)

    stopped.task = dataclasses.replace(stopped.task, batch=signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match=rf"^test is saved at step {stop_at // 2 + 1} of 12$"):
        run(stopped, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = trainer()
    assert losses(run(resumed, tmp_path / "stopped")) == losses(expected)
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(value, resumed.task.model.state_dict()[name]), name


@pytest.mark.parametrize("place", [b'\\"step\\": 4', -9], ids=["what it tells", "weights"])
def test_a_flipped_bit_is_not_trained_on(
    tmp_path: Path, place: bytes | int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(trainer(), tmp_path / "whole")
    with pytest.raises(Killed):
        run(trainer(9), tmp_path / "killed")
    (file,) = (tmp_path / "killed").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[place if isinstance(place, int) else content.index(place) + len(place) - 1] ^= 0x01
    file.write_bytes(content)
    assert losses(run(trainer(), tmp_path / "killed")) == losses(expected)
    assert (
        "checkpoint.safetensors is damaged (it does not fit its checksum): starting from step 0"
        in capsys.readouterr().out
    )


def test_checkpoint_of_another_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(trainer(9), tmp_path)
    progress = run(trainer(), tmp_path, fingerprint="b")
    assert "belongs to other parameters, data or code: starting from step 0" in capsys.readouterr().out
    assert progress.resumed == 0
    assert losses(progress) == losses(run(trainer(), tmp_path / "fresh"))


def test_truncated_checkpoint_is_said_and_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(trainer(9), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert run(trainer(), tmp_path).resumed == 0
    assert "is damaged" in capsys.readouterr().out


def test_divergence_is_a_cell_failure(tmp_path: Path) -> None:
    subject = trainer(rate=0.01)
    with torch.no_grad():
        subject.task.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CellFailure, match="training loss is nan at step 1: lower the learning rate"):
        run(subject, tmp_path)


def test_gradient_accumulation_equals_one_large_batch() -> None:
    """However unevenly the labels lie, a step's loss is the mean over all of them."""
    accumulated = trainer()
    accumulated.task.model.eval()
    joined = trainer()
    joined.task.model.eval()
    micro = [(inputs, labels.clone()) for inputs, labels in map(accumulated.task.batch, (0, 1))]
    micro[1][1][:, :-1] = IGNORED
    object.__setattr__(accumulated.task, "batch", lambda index: micro[index])
    object.__setattr__(joined, "settings", SETTINGS.model_copy(update={"gradient_accumulation": 1}))
    whole = (torch.cat([micro[0][0], micro[1][0]]), torch.cat([micro[0][1], micro[1][1]]))
    object.__setattr__(joined.task, "batch", lambda index: whole)
    first, second = accumulated.step(0), joined.step(0)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.gradient_norm, second.gradient_norm)
    assert first.tokens == second.tokens == 32


def test_schedule() -> None:
    rates = [learning_rate_at(step, 1.0, SETTINGS) for step in range(SETTINGS.steps)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_only_matrices_decay_and_the_embedding_has_its_own_rate() -> None:
    model = TinyModel()
    embedding, decayed, plain = parameter_groups(model, SETTINGS)
    assert embedding["params"] == [model.embed_tokens.weight]
    assert (embedding["weight_decay"], embedding["lr_scale"]) == (0.0, 3.0)
    assert [parameter.ndim for parameter in decayed["params"]] == [2]
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    model.embed_tokens.weight.requires_grad_(False)
    assert len(parameter_groups(model, SETTINGS)) == 2, "a frozen embedding has no group"


@pytest.mark.parametrize(
    ("parts", "vectors"),
    [
        (FAMILIES["rwkv"], ("mixer.mix", "bonus")),
        (FAMILIES["relative"], ("position.bias",)),
        (FAMILIES["nsa"], ("compression.position",)),
        ({"feedforward": "moe"}, ()),
        ({"tie_embeddings": True}, ()),
    ],
    ids=["rwkv", "relative", "nsa", "moe", "tied"],
)
def test_vectors_side_by_side_do_not_decay_and_a_tied_head_is_a_matrix(
    parts: dict[str, Any], vectors: tuple[str, ...]
) -> None:
    model = build_decoder(config_of(**{"tie_embeddings": False, **parts}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"] > 0: group for group in parameter_groups(model, SETTINGS) if "lr_scale" not in group
    }
    decayed = {names[id(parameter)] for parameter in groups[True]["params"]}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    left_out = {name for name in matrices if name.endswith(vectors)} if vectors else set()
    assert bool(left_out) == bool(vectors)
    tied = parts.get("tie_embeddings", False)
    assert decayed == matrices - left_out - (set() if tied else {"embed_tokens.weight"})


def test_order_is_pure_and_covers_every_epoch() -> None:
    first = [batch_positions(7, 3, step, seed=1) for step in range(7)]
    assert first == [batch_positions(7, 3, step, seed=1) for step in range(7)]
    flat = [position for batch in first for position in batch]
    for epoch in range(3):
        assert sorted(flat[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert flat[:7] != flat[7:14], "epochs are shuffled apart"
    assert first != [batch_positions(7, 3, step, seed=2) for step in range(7)]
