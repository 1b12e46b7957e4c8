"""Recorded gradients are those that a step computes launched kernel by kernel."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from efficientllm.config.schema import TrainingSettings
from efficientllm.data.packing import IGNORED
from efficientllm.models.build import build_decoder
from efficientllm.models.cuda_graphs import RecordingError, Step, record
from efficientllm.models.decoder import Decoder
from efficientllm.models.recomputation import TwinGenerators, recomputing
from efficientllm.training import recorded_gradients
from efficientllm.training.losses import Targets, training_loss
from efficientllm.training.optimizer import parameter_groups
from efficientllm.training.recorded_gradients import Batch, RecordedGradients, alike
from efficientllm.training.trainer import Trainer, TrainingTask
from tests.models.conftest import FAMILIES, MOE, config_of

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CHANGES: dict[str, dict[str, Any]] = {**FAMILIES, "moe": {"feedforward": "moe", "feedforward_options": MOE}}


def batch_of(seed: int, *, length: int = 16, ignored: int = 0) -> Batch:
    window = torch.randint(61, (4, length + 1), generator=torch.Generator().manual_seed(seed))
    labels = window[:, 1:].clone()
    labels[:, seed : seed + ignored] = IGNORED
    return window[:, :-1], labels


def gradients_of(decoder: Decoder, compute: Callable[[], torch.Tensor | None]) -> tuple[float, list[torch.Tensor]]:
    loss = compute()
    assert loss is not None
    found = [parameter.grad.clone() for parameter in decoder.parameters() if parameter.grad is not None]
    decoder.zero_grad(set_to_none=True)
    return float(loss), found


def recorded_and_launched(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    decoder = build_decoder(config_of(**CHANGES[name])).to(device).train()
    parameters = list(decoder.parameters())

    # without it a mixture loops over its experts, for which the host waits
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "moe")

    def compute(inputs: torch.Tensor, targets: torch.Tensor | Targets) -> torch.Tensor:
        with autocast:
            loss, cross_entropy = training_loss(decoder, inputs, targets)
        loss.backward()
        return cross_entropy

    compute(batch_of(0)[0].to(device), batch_of(0)[1])
    recorded = RecordedGradients(compute, batch_of(0), parameters, device)
    assert all(parameter.grad is None for parameter in parameters)
    for seed in (1, 2, 1):
        inputs, labels = batch_of(seed)
        expected_loss, expected = gradients_of(decoder, lambda i=inputs, t=labels: compute(i.to(device), t))  # type: ignore[misc]
        loss, found = gradients_of(decoder, lambda b=(inputs, labels): recorded(b))  # type: ignore[misc]
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2 if name == "moe" else 1e-3, atol=1e-5)
    assert recorded(batch_of(1, length=8)) is None
    assert recorded(batch_of(1, ignored=2)) is None
    assert all(parameter.grad is None for parameter in parameters)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays that compute anew and write where the recorded step wrote, as a CUDA graph does."""
    capturing = False

    def record(steps: Sequence[Step], device: torch.device, **_: Any) -> list[Step]:
        nonlocal capturing
        (step,) = steps
        step()
        recorder = step.__closure__ and next(
            cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, RecordedGradients)
        )
        assert isinstance(recorder, RecordedGradients)
        parameters = recorder._parameters
        assert all(parameter.grad is None for parameter in parameters)
        capturing = True
        step()
        capturing = False
        kept = [parameter.grad for parameter in parameters]
        kept_loss = recorder._cross_entropy

        def replay() -> None:
            nonlocal capturing
            recorder._clear()
            capturing = True
            step()
            capturing = False
            for parameter, place in zip(parameters, kept, strict=True):
                if place is not None and parameter.grad is not None:
                    place.copy_(parameter.grad)
            recorder._cross_entropy = kept_loss.copy_(recorder._cross_entropy)
            recorder._clear()

        return [replay]

    monkeypatch.setattr(recorded_gradients, "record", record)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)


@pytest.mark.usefixtures("emulated")
def test_replays_give_each_batchs_gradients() -> None:
    recorded_and_launched("gqa", torch.device("cpu"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS_GPU) for name in CHANGES])
def test_on_a_gpu(name: str) -> None:
    recorded_and_launched(name, torch.device("cuda"))


def test_alike_are_batches_of_one_shape_with_as_many_labels() -> None:
    assert alike(batch_of(0), batch_of(1))
    assert alike(batch_of(0, ignored=2), batch_of(1, ignored=2))
    assert not alike(batch_of(0), batch_of(1, length=8))
    assert not alike(batch_of(0), batch_of(1, ignored=2))
    assert not alike(batch_of(0, ignored=3), batch_of(1, ignored=2))


SETTINGS = TrainingSettings(
    sequence_length=16, batch_size=4, gradient_accumulation=1, steps=6, warmup_steps=2, final_learning_rate_fraction=0.1,
    embedding_learning_rate_scale=3.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=0.5, autocast="none",
    evaluation_steps=3, evaluation_sequences=2, checkpoint_seconds=60.0,
)  # fmt: skip


def trainer(device: torch.device, batch: Callable[[int], Batch] = batch_of, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    decoder = build_decoder(config_of()).to(device)
    settings = SETTINGS.model_copy(update=changes)
    task = TrainingTask(decoder, decoder, batch, lambda: 1.0, lambda: parameter_groups(decoder, settings), 0.01)
    return Trainer(task, settings, device)


def weights_after(subject: Trainer, steps: int) -> list[torch.Tensor]:
    subject.task.model.train()
    for index in range(steps):
        subject.step(index)
    return [parameter.detach().clone() for parameter in subject.task.model.parameters()]


@pytest.mark.usefixtures("emulated")
def test_a_trainer_that_records_trains_the_same() -> None:
    expected = weights_after(trainer(torch.device("cpu")), 6)
    subject = trainer(torch.device("cpu"))
    weights_after(subject, 2)
    subject._recorded = RecordedGradients(subject._backward, batch_of(0), subject._trainable, subject.device)
    for index in range(2, 6):
        subject.step(index)
    for parameter, other in zip(subject.task.model.parameters(), expected, strict=True):
        assert torch.equal(parameter, other)


def launches(
    monkeypatch: pytest.MonkeyPatch, record: Callable[..., list[Step]], obstacle: str | None = None, **changes: Any
) -> str:
    """What a trainer says after recording on a device that is said to be a GPU."""
    subject = trainer(torch.device("cpu"), **changes)
    subject.device = torch.device("cuda")
    monkeypatch.setattr(recorded_gradients, "record", record)
    monkeypatch.setattr(recorded_gradients, "speed_up_replays", lambda device: obstacle)
    monkeypatch.setattr(recorded_gradients, "targets", lambda labels, device: Targets(labels.flatten(), None, True))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    subject.record()
    assert (subject._recorded is None) == ("CUDA graph" not in subject._launches or "too much" in subject._launches)
    return subject._launches


def test_what_cannot_be_recorded_is_launched_kernel_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Callable[..., list[Step]]:
        def record(*_: Any, **__: Any) -> list[Step]:
            raise error

        return record

    def succeeds(*_: Any, **__: Any) -> list[Step]:
        return [lambda: None]

    assert launches(monkeypatch, succeeds) == "forward and backward pass as one CUDA graph"
    assert launches(monkeypatch, succeeds, "no driver").endswith("CUDA graph, at the slower of two speeds: no driver")
    assert launches(monkeypatch, fails(RecordingError("the host waits"))) == "kernel by kernel: the host waits"
    assert "too much" in launches(monkeypatch, fails(torch.OutOfMemoryError()))
    assert "one micro-batch" in launches(monkeypatch, succeeds, gradient_accumulation=2)
    assert launches(monkeypatch, succeeds, compile="none") == "kernel by kernel"
    varied = trainer(torch.device("cpu"), lambda index: batch_of(index, length=8 + 8 * (index % 2)))
    varied.device = torch.device("cuda")
    varied.record()
    assert varied._launches == "kernel by kernel: each batch has a shape of its own"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_training_on_a_gpu(device: str, autocast: str, recompute: bool) -> None:
    changes = {"autocast": autocast, "recompute_activations": recompute}
    plain = trainer(torch.device(device), **changes)
    plain.compile_ahead()
    expected = weights_after(plain, 6)
    subject = trainer(torch.device(device), **changes)
    subject.compile_ahead()
    subject.record()
    assert subject.kernels()["training launches"] == "forward and backward pass as one CUDA graph"
    for one, other in zip(weights_after(subject, 6), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-3)


class _Masked(nn.Module):
    """Its output tells the mask that was drawn, and so does the gradient of its factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.tanh(self.dropout(hidden) * self.factor)
        return output


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_recomputed_blocks_draw_the_same_random_numbers_in_a_graph(device: str, compiled: bool) -> None:
    blocks = [_Masked().to(device) for _ in range(3)]
    parameters = [block.factor for block in blocks]
    twins = TwinGenerators(len(blocks), torch.device(device))
    recomputed = recomputing(twins, random=True)
    called = [torch.compile(block) if compiled else block for block in blocks]
    hidden = torch.rand(4, 64, device=device) + 0.5
    outputs = torch.empty(3, 4, 64, device=device)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        for index, block in enumerate(called):
            output = recomputed(index, block, hidden)
            outputs[index] = output.detach()
            output.sum().backward()

    step()
    (replay,) = record([step], torch.device(device), prepared=True, generators=twins.all())
    gradients, seen = [parameter.grad for parameter in parameters], []
    for _ in range(3):
        replay()
        for output, gradient in zip(outputs, gradients, strict=True):
            kept = output != 0
            doubled = 2 * hidden
            expected = (kept * doubled * (1 - torch.tanh(doubled) ** 2)).sum(dim=0)
            torch.testing.assert_close(gradient, expected)
            assert 60 < int(kept.sum()) < 196
            seen.append(kept.flatten().tolist())
    assert len({tuple(mask) for mask in seen}) == 9  # every block and every replay draws others


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_adapters_with_dropout_and_recomputed_activations_are_recorded(device: str) -> None:
    subject = trainer(torch.device(device), recompute_activations=True, autocast="bfloat16")
    for block in subject.task.decoder.blocks():
        block.feedforward.down_proj = nn.Sequential(block.feedforward.down_proj, nn.Dropout(0.1))
    subject.compile_ahead()
    subject.record()
    assert subject.kernels()["training launches"] == "forward and backward pass as one CUDA graph"
    subject.task.model.train()
    losses = [float(subject.step(0).loss) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.3
