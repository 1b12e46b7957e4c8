"""16-bit products by way of float32: the values of PyTorch's own kernels, and nothing else is touched."""

import pytest
import torch
from torch import nn

from efficientllm.evaluation.half_products import half_products_in_float32
from efficientllm.models.build import build_decoder
from efficientllm.quantization.precision import precision
from tests.models.conftest import config_of

HALVES = [torch.float16, torch.bfloat16]
FOUR_BIT = {"quantization_type": "nf4", "double_quantization": True, "compute_type": "bfloat16"}


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.usefixtures("old_processor")
@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_as_near_to_the_exact_ones_as_pytorchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(256, 128).to(dtype), torch.randn(64, 256).to(dtype)
    exact = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
    theirs = (layer(inputs).double() - exact).abs().mean()
    with half_products_in_float32(layer):
        found = layer(inputs)
    assert found.dtype == dtype
    ours = (found.double() - exact).abs().mean()
    assert ours <= 1.01 * theirs
    precise = torch.finfo(dtype).eps * exact.abs().max()
    assert (found - exact.to(dtype)).abs().max() <= precise


@pytest.mark.usefixtures("old_processor")
@pytest.mark.parametrize(("key", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int4", 2e-2)])
def test_a_model_evaluates_alike_and_is_left_as_it_was(key: str, tolerance: float) -> None:
    torch.manual_seed(0)
    decoder = build_decoder(config_of(mixer="gqa", hidden_size=64, intermediate_size=128))
    precision(key).convert(decoder, precision(key).options(FOUR_BIT if key == "int4" else {}))
    tokens = torch.randint(decoder.config.vocabulary_size, (2, 9))
    expected = decoder(tokens).logits
    rearranged = any(getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False)
                     for parameter in decoder.parameters())  # fmt: skip
    with half_products_in_float32(decoder):
        replaced = [name for name, module in decoder.named_modules() if "forward" in vars(module)]
        # bitsandbytes' own kernel, where the processor has one, is left alone
        assert any(name.endswith("q_proj") for name in replaced) != rearranged
        torch.testing.assert_close(decoder(tokens).logits, expected, rtol=tolerance, atol=tolerance)
    assert not any("forward" in vars(module) for module in decoder.modules())
    assert torch.equal(decoder(tokens).logits, expected)


@pytest.mark.parametrize(
    ("dtype", "processor", "replaced"),
    [
        (torch.float32, "AVX2", False),
        (torch.bfloat16, "AVX2", True),
        (torch.bfloat16, "DEFAULT", True),
        (torch.bfloat16, "AVX512", False),
        (torch.float16, "AVX512", True),
    ],
)
def test_only_what_the_processor_has_no_instructions_for_is_replaced(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, processor: str, replaced: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    layer = nn.Linear(4, 4).to(dtype)
    with half_products_in_float32(layer):
        assert ("forward" in vars(layer)) == replaced


def test_integers_are_left_alone() -> None:
    decoder = build_decoder(config_of(mixer="gqa", hidden_size=64, intermediate_size=128))
    chosen = precision("int8")
    chosen.convert(decoder, chosen.options({"outlier_threshold": 6.0, "compute_type": "float16"}))
    with half_products_in_float32(decoder):
        quantized = [module for name, module in decoder.named_modules() if name.endswith("_proj")]
        assert quantized
        assert not any("forward" in vars(module) for module in quantized)
