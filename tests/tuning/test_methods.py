"""Each method trains exactly what it says, starts from the base's function, and is stored and loaded whole."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from efficientllm import registry
from efficientllm.config.schema import MethodSettings, TrainingSettings
from efficientllm.data.packing import IGNORED
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.weights import load_decoder, save_decoder
from efficientllm.training.trainer import Trainer, TrainingTask
from efficientllm.tuning.method import TunableModel, tuning_method

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "lora_plus": {"rank": 4, "alpha": 8, "dropout": 0.0, "learning_rate_ratio": 16.0},
    "rslora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "dora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "pissa": {"rank": 4, "alpha": 4, "dropout": 0.0, "svd_iterations": None},
    "freeze": {"trainable_layers": 1},
    "full": {},
    "qlora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "oft": {"block_size": 8, "dropout": 0.0},
}
QUANTIZATION_ERROR = 0.2  # of a logit, by 4-bit weights
TRAINING = TrainingSettings(
    sequence_length=16, batch_size=4, gradient_accumulation=1, steps=6, warmup_steps=1, final_learning_rate_fraction=1.0,
    embedding_learning_rate_scale=1.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="none",
    evaluation_steps=6, evaluation_sequences=2, checkpoint_seconds=1000.0,
)  # fmt: skip
INPUTS = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(1))


def settings(method: str, **changes: Any) -> MethodSettings:
    rates = {"small": 0.01, "medium": 0.01, "large": 0.01}
    return MethodSettings.model_validate({"learning_rate": rates, **OPTIONS[method], **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = DecoderConfig(
        vocabulary_size=64, hidden_size=64, layers=3, heads=4, key_value_heads=2, intermediate_size=64,
        context_length=32, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    save_decoder(folder, build_decoder(config))
    return folder


def prepared(method: str, base: Path, **changes: Any) -> TunableModel:
    implementation = tuning_method(method)
    torch.manual_seed(3)
    known = {name: value for name, value in changes.items() if name in OPTIONS[method]}
    return implementation.prepare(base, implementation.options(settings(method, **known)))


def train(method: str, model: TunableModel, steps: int = 6) -> None:
    implementation = tuning_method(method)
    labels = INPUTS.roll(-1, dims=1).clone()
    labels[:, :4] = IGNORED
    groups = implementation.groups(model, implementation.options(settings(method)), TRAINING)
    task = TrainingTask(model.module, model.decoder, lambda index: (INPUTS, labels), lambda: 0.0, lambda: groups, 0.01)
    trainer = Trainer(task, TRAINING, torch.device("cpu"))
    model.module.train()
    losses = [float(trainer.step(index).loss) for index in range(steps)]
    model.module.eval()
    assert losses[-1] < losses[0], f"{method} does not learn: {losses}"


def test_every_registered_method_is_tested() -> None:
    assert set(OPTIONS) == set(registry.method_keys())


@pytest.mark.parametrize("method", OPTIONS)
def test_starts_from_the_bases_function(method: str, base: Path) -> None:
    model = prepared(method, base)
    model.module.eval()
    with torch.no_grad():
        ours, bases = model.decoder(INPUTS).logits, load_decoder(base).eval()(INPUTS).logits
    if method == "qlora":
        difference = float((ours - bases).abs().mean() / bases.std())
        assert 0 < difference < QUANTIZATION_ERROR, "4-bit weights differ from the base's, by their rounding"
    else:
        torch.testing.assert_close(ours, bases, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(set(OPTIONS) - {"full"}))
def test_frozen_weights_stay_bit_identical(method: str, base: Path) -> None:
    model = prepared(method, base)
    frozen = {name: p.detach().clone() for name, p in model.module.named_parameters() if not p.requires_grad}
    moving = {name: p.detach().clone() for name, p in model.module.named_parameters() if p.requires_grad}
    train(method, model)
    after = dict(model.module.named_parameters())
    assert frozen
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert not any(torch.equal(value, after[name]) for name, value in moving.items())


def test_trainable_parameters_are_the_intended_ones(base: Path) -> None:
    def trainable(method: str) -> list[str]:
        return [name for name, p in prepared(method, base).module.named_parameters() if p.requires_grad]

    linear_layers = 3 * 7  # q, k, v, o, gate, up, down
    lora, dora = trainable("lora"), trainable("dora")
    assert len(lora) == 2 * linear_layers
    assert all("lora_A" in name or "lora_B" in name for name in lora)
    assert len(dora) == 3 * linear_layers
    assert sum("magnitude" in name for name in dora) == linear_layers
    assert not any("lm_head" in name or "embed" in name for name in lora + dora)
    every = [name for name, _ in load_decoder(base).named_parameters()]
    assert trainable("freeze") == [name for name in every if name.startswith("layers.2.")]
    assert len(trainable("freeze")) == 7 + 2, "its linear layers and its two norms"
    assert trainable("full") == every


@pytest.mark.parametrize("method", OPTIONS)
def test_stored_and_loaded_whole(method: str, base: Path, tmp_path: Path) -> None:
    model = prepared(method, base)
    train(method, model)
    tuning_method(method).save(model, tmp_path)
    for path in tmp_path.glob("adapter_config.json"):
        targets = json.loads(path.read_text())["target_modules"]
        assert targets == sorted(targets), "a set's order would make every process' artifact another one"
    with torch.no_grad():
        expected = model.decoder(INPUTS).logits
    loaded = tuning_method(method).load(tmp_path, base)
    with torch.no_grad():
        # 4-bit products round their inputs, plain ones of the expanded weights do not
        torch.testing.assert_close(loaded(INPUTS).logits, expected, atol=1e-3 if method == "qlora" else 2e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    stored = sum(tensor.numel() for path in tmp_path.glob("*.safetensors") for tensor in load_file(path).values())
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert stored == trained * tuning_method(method).stored_per_trained


def test_rank_stabilized_lora_is_lora_with_another_scale(base: Path) -> None:
    outputs = []
    for method, alpha in (("rslora", 8.0), ("lora", 16.0)):  # alpha / sqrt(4) = 2 alpha / 4
        implementation = tuning_method(method)
        torch.manual_seed(3)
        model = implementation.prepare(base, implementation.options(settings(method, alpha=alpha)))
        train(method, model)
        outputs.append(model.decoder(INPUTS).logits)
    assert torch.equal(*outputs)


def test_qlora_is_lora_on_the_weights_that_its_four_bits_hold(base: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    quantized = prepared("qlora", base)
    original = load_decoder(base)
    packed = {name: layer for name, layer in quantized.decoder.named_modules() if isinstance(layer, Linear4bit)}
    expected = {name for name, layer in original.named_modules() if isinstance(layer, torch.nn.Linear)} - {"lm_head"}
    assert {name.removesuffix(".base_layer") for name in packed if name.endswith(".base_layer")} == expected
    assert type(quantized.decoder.lm_head) is torch.nn.Linear
    assert torch.equal(quantized.decoder.lm_head.weight, original.lm_head.weight)
    with torch.no_grad():
        for name in sorted(expected):
            layer, weight = packed[f"{name}.base_layer"], original.get_submodule(name).weight
            state = layer.weight.quant_state
            assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
            assert layer.weight.dtype == torch.uint8
            assert layer.weight.numel() == weight.numel() / 2
            weight.copy_(dequantize_4bit(layer.weight.data, state))
    save_decoder(tmp_path, original)
    plain = prepared("lora", tmp_path)

    adapters = [
        {name: p for name, p in model.module.named_parameters() if p.requires_grad} for model in (quantized, plain)
    ]
    assert adapters[0].keys() == adapters[1].keys()
    with torch.no_grad():
        for name, parameter in adapters[0].items():
            parameter.normal_(std=0.1)  # B is zero at the start
            adapters[1][name].copy_(parameter)
    for model in (quantized, plain):
        model.module.train()  # out of training, a CPU's product of 4-bit weights rounds its inputs
    logits = [model.decoder(INPUTS).logits for model in (quantized, plain)]
    torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-5)
    upstream = torch.randn_like(logits[0])
    gradients = [torch.autograd.grad(x, list(own.values()), upstream) for x, own in zip(logits, adapters, strict=True)]
    for name, ours, theirs in zip(adapters[0], *gradients, strict=True):
        assert ours.any(), name
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def block_diagonal_skew(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Skew-symmetric matrices on the diagonal, each given by its upper triangle row by row."""
    rows, columns = torch.triu_indices(size, size, 1)
    blocks = torch.zeros(len(numbers), size, size, dtype=numbers.dtype)
    blocks[:, rows, columns] = numbers
    return torch.block_diag(*(blocks - blocks.transpose(1, 2)))


def test_oft_turns_the_inputs_of_each_weight(base: Path, tmp_path: Path) -> None:
    """y = W R^T x, where R is Cayley's (I + Q)(I - Q)^-1 of the trained Q, up to the fourth power of Q."""
    model = prepared("oft", base)
    train("oft", model)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "oft_R" in name:
                parameter.mul_(0.5)  # the series stops at the fourth power
    tuning_method("oft").save(model, tmp_path)
    merged, original = tuning_method("oft").load(tmp_path, base), load_decoder(base)
    identity = torch.eye(64, dtype=torch.float64)
    x = torch.randn(5, 64)
    names = [name for name, layer in original.named_modules() if isinstance(layer, torch.nn.Linear)]
    for name in set(names) - {"lm_head"}:
        layer = model.decoder.get_submodule(name)
        numbers = layer.oft_R["default"].weight.detach().double()
        assert numbers.shape == (8, 28)
        q = block_diagonal_skew(numbers, 8)
        rotation = identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        weight = original.get_submodule(name).weight.detach().double()
        found = merged.get_submodule(name).weight.double()
        torch.testing.assert_close(found, weight @ rotation.T, rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(layer(x).detach().double(), x.double() @ rotation @ weight.T, rtol=0, atol=1e-5)
        size = float(torch.linalg.matrix_norm(q, ord=2))
        assert 0.01 < size < 0.3
        moved = float((found - weight).norm())
        assert float((weight @ rotation - found).norm()) > moved, "R itself turns the other way"
        cayley = (identity + q) @ torch.linalg.inv(identity - q)
        assert float(torch.linalg.matrix_norm(rotation - cayley, ord=2)) < 2 * size**4
        assert float(torch.linalg.matrix_norm(rotation.T @ rotation - identity, ord=2)) < 4 * size**4
    assert torch.equal(merged.lm_head.weight, original.lm_head.weight)


def test_lora_plus_gives_b_the_higher_rate(base: Path) -> None:
    model = prepared("lora_plus", base)
    implementation = tuning_method("lora_plus")
    groups = implementation.groups(model, implementation.options(settings("lora_plus")), TRAINING)
    rates = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    trainable = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert len(rates) == len(trainable)
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == (16.0 if "lora_B" in name else 1.0), name
    assert all(group["weight_decay"] == TRAINING.weight_decay for group in groups)


@pytest.mark.parametrize("iterations", [None, 16])
def test_pissa_starts_from_the_principal_singular_values(base: Path, iterations: int | None) -> None:
    implementation = tuning_method("pissa")
    torch.manual_seed(3)
    options = implementation.options(settings("pissa", svd_iterations=iterations))
    layer = implementation.prepare(base, options).decoder.blocks()[0].mixer.q_proj
    original = load_decoder(base).blocks()[0].mixer.q_proj.weight
    left, values, right = torch.linalg.svd(original.detach())
    principal = (left[:, :4] * values[:4]) @ right[:4]
    adapter = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight + adapter, original, atol=1e-5, rtol=1e-4)
    if iterations is None:
        torch.testing.assert_close(adapter, principal, atol=1e-4, rtol=1e-3)
    else:  # the spectrum of a random matrix is nearly flat, so that the subspace is found roughly
        assert float(adapter.detach().norm()) > 0.97 * float(principal.norm())


@pytest.mark.parametrize("method", OPTIONS)
def test_damaged_artifact_is_one_clear_error(method: str, base: Path, tmp_path: Path) -> None:
    model = prepared(method, base)
    tuning_method(method).save(model, tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="dvc repro"):
        tuning_method(method).load(tmp_path, base)


def test_first_gradient_of_full_tuning_equals_a_plain_transformers_loop(base: Path) -> None:
    from efficientllm.models.export import to_transformers, transformers_name

    model = prepared("full", base)
    labels = INPUTS.clone()
    labels[:, :5] = IGNORED
    loss = F.cross_entropy(model.decoder(INPUTS[:, :-1]).logits.flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    plain = to_transformers(load_decoder(base))
    output = plain(input_ids=INPUTS, labels=labels)
    output.loss.backward()
    torch.testing.assert_close(loss, output.loss)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[transformers_name(name)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "freeze"])
def test_all_layers_share_few_compiled_programs(method: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the first layer, whose input wants no gradient, and one for the others (Freeze: those that it trains)."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    model = prepared(method, base, dropout=0.1)
    model.module.train()
    model.decoder.compile_blocks()
    for _ in range(2):
        model.decoder(INPUTS).logits.sum().backward()
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (
            "lora",
            {"rnk": 3},
            "unknown parameter 'tune.methods.lora.rnk'; did you mean 'tune.methods.lora.rank'? known: alpha, dropout, rank",
        ),
        ("dora", {"rank": 0}, "parameter 'tune.methods.dora.rank' is 0: input should be greater than or equal to 1"),
        ("full", {"rank": 8}, "unknown parameter 'tune.methods.full.rank'; known: none"),
    ],
)
def test_unfit_options_are_named(method: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        tuning_method(method).options(settings(method, **change))
    assert str(caught.value) == message


def test_more_layers_than_there_are(base: Path) -> None:
    implementation = tuning_method("freeze")
    with pytest.raises(ParameterError, match=r"trainable_layers is 9, but the model of .* has 3 layers"):
        implementation.prepare(base, implementation.options(settings("freeze", trainable_layers=9)))
