"""Batches of tuning: as long as their longest example, but of few widths where each width costs a compilation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm.config.schema import BatchSizes, TuningTrainingSettings
from efficientllm.data.prompts import EncodedExample
from efficientllm.models.build import build_decoder
from efficientllm.tuning import tune
from efficientllm.tuning.method import TunableModel, tuning_method
from tests.models.conftest import config_of

LENGTHS = range(4, 17)


def trainer(monkeypatch: pytest.MonkeyPatch, compiled: str, sizes: BatchSizes | None = None, steps: int = 12) -> Any:
    examples = [EncodedExample([1 + length % 7] * length, length - 2) for length in LENGTHS]
    monkeypatch.setattr(tune, "base_folder", lambda _: Path("base"))
    monkeypatch.setattr(tune, "encode_split", lambda *_, **__: examples)
    settings = TuningTrainingSettings(
        sequence_length=16, batch_size=2, gradient_accumulation=1, steps=steps, warmup_steps=2, final_learning_rate_fraction=0.1,
        embedding_learning_rate_scale=1.0, weight_decay=0.0, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="none",
        compile=compiled, evaluation_steps=50, evaluation_sequences=4, checkpoint_seconds=60.0, batch_sizes=sizes,
    )  # fmt: skip
    method = SimpleNamespace(learning_rate=SimpleNamespace(small=1e-3))
    profile = SimpleNamespace(tune=SimpleNamespace(training=settings, methods={"full": method}))
    configuration: Any = SimpleNamespace(profile=profile, parameters=SimpleNamespace(seed=0))
    torch.manual_seed(0)
    decoder = build_decoder(config_of(mixer="gqa"))
    monkeypatch.setattr(tuning_method("full"), "options", lambda _: None)
    return tune.tuning_trainer(configuration, "full", "small", TunableModel(decoder, decoder), torch.device("cpu"))


def test_uncompiled_batches_are_no_wider_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(monkeypatch, "none")
    widths = set()
    for index in range(12):
        inputs, labels = made.task.batch(index)
        assert (labels[:, -1] >= 0).any(), "the last place of the longest example is its answer's"
        widths.add(inputs.shape[1])
    assert len(widths) > 4


def test_each_size_may_have_its_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sized = trainer(monkeypatch, "none", BatchSizes(small=3, medium=2, large=1))
    assert [len(sized.task.batch(index)[0]) for index in range(3)] == [3, 3, 3]
    assert (sized.settings.batch_size, sized.settings.batch_sizes) == (3, None)  # what a checkpoint's fingerprint holds
    assert len(trainer(monkeypatch, "none").task.batch(0)[0]) == 2


@pytest.mark.slow
def test_what_is_compiled_ahead_is_all_that_a_run_compiles_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    assert len(trainer(monkeypatch, "blocks").task.each_shape) == 1, "a short training has one width"
    made = trainer(monkeypatch, "blocks", steps=1200)
    weights = {name: tensor.clone() for name, tensor in made.task.model.state_dict().items()}
    random_state = torch.get_rng_state()
    made.compile_ahead()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == len(made.task.each_shape) > 1
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in made.task.model.parameters())
    losses = [float(made.step(index).loss) for index in range(12)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a program for each width and no more"
    plain = trainer(monkeypatch, "none", steps=1200)
    assert losses == pytest.approx([float(plain.step(index).loss) for index in range(12)], abs=1e-4)
    torch.compiler.reset()
