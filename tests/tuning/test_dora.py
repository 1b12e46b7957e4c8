"""DoRA's own forward pass is PEFT's function, at the cost of LoRA's."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch.utils.flop_counter import FlopCounterMode

from efficientllm.config.schema import MethodSettings
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.weights import load_decoder, save_decoder
from efficientllm.tuning.method import TunableModel, tuning_method

INPUTS = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases, whose magnitudes do not scale them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = DecoderConfig(
        vocabulary_size=64, hidden_size=64, layers=2, heads=4, key_value_heads=2, intermediate_size=96,
        context_length=32, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={"bias": True}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    decoder = build_decoder(config)
    for name, parameter in decoder.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    save_decoder(folder, decoder)
    return folder


def prepared(method: str, base: Path, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> TunableModel:
    implementation = tuning_method(method)
    rates = {"small": 0.01, "medium": 0.01, "large": 0.01}
    settings = MethodSettings.model_validate({"learning_rate": rates, "rank": 4, "alpha": 8, "dropout": dropout})
    torch.manual_seed(3)
    return implementation.prepare(base, implementation.options(settings), dtype=dtype)


def moved(model: TunableModel) -> TunableModel:
    """Takes the adapters away from their start, where DoRA is the base."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
        elif "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return model


def outputs_and_gradients(model: TunableModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model.decoder(INPUTS).logits
    logits.logsumexp(dim=-1).mean().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def test_outputs_and_gradients_are_those_of_peft(base: Path) -> None:
    ours, theirs = moved(prepared("dora", base)), moved(prepared("dora", base))
    for layer in theirs.module.modules():
        if isinstance(layer, Linear):
            layer.lora_variant["default"] = DoraLinearVariant()
    logits, gradients = outputs_and_gradients(ours)
    expected_logits, expected = outputs_and_gradients(theirs)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
    assert len(gradients) == 3 * 2 * 7
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_exactly_at_the_base_in_any_type(base: Path, dtype: torch.dtype) -> None:
    """Magnitudes rounded to bfloat16 would scale every row by up to 0.4 %."""
    model = prepared("dora", base, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(model.decoder(INPUTS).logits, load_decoder(base, dtype=dtype)(INPUTS).logits)


def test_costs_little_more_than_lora(base: Path) -> None:
    """Neither a product with the frozen weight more than LoRA's, nor one with an identity matrix."""

    def operations(method: str) -> int:
        model = prepared(method, base, dropout=0.1)
        model.module.train()
        with FlopCounterMode(display=False) as counter:
            model.decoder(INPUTS).logits.sum().backward()
        return counter.get_total_flops()

    assert operations("dora") < 1.15 * operations("lora")


def test_a_row_that_the_update_cancels_has_a_finite_gradient(base: Path) -> None:
    model = prepared("dora", base)
    layer = model.decoder.blocks()[0].mixer.q_proj
    weight = layer.base_layer.weight
    with torch.no_grad():
        weight[0] = 0
        layer.lora_magnitude_vector["default"].base_square_norm[0] = 0
        layer.lora_magnitude_vector["default"].weight[0] = 0
    logits, gradients = outputs_and_gradients(model)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
