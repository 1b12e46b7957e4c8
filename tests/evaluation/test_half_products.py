"""Float16 products by way of float32: the values of PyTorch's own kernels, and nothing else is touched."""

import torch
from torch import nn

from efficientllm.evaluation.half_products import half_products_in_float32
from efficientllm.models.build import build_decoder
from tests.models.conftest import config_of


def test_results_are_as_near_to_the_exact_ones_as_pytorchs() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(256, 128).half(), torch.randn(64, 256).half()
    exact = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
    theirs = (layer(inputs).double() - exact).abs().mean()
    with half_products_in_float32(layer):
        found = layer(inputs)
    assert found.dtype == torch.float16
    ours = (found.double() - exact).abs().mean()
    assert ours <= 1.01 * theirs
    assert torch.equal(found, exact.half()) or (found - exact.half()).abs().max() <= 2**-10 * exact.abs().max()


def test_a_model_evaluates_alike_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    decoder = build_decoder(config_of(mixer="gqa")).half().eval()
    tokens = torch.randint(decoder.config.vocabulary_size, (2, 9))
    expected = decoder(tokens).logits
    with half_products_in_float32(decoder):
        assert any("forward" in vars(module) for module in decoder.modules())
        torch.testing.assert_close(decoder(tokens).logits, expected, rtol=2e-3, atol=2e-3)
    assert not any("forward" in vars(module) for module in decoder.modules())
    assert torch.equal(decoder(tokens).logits, expected)


def test_other_types_are_left_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(4, 4).to(dtype)
        with half_products_in_float32(layer):
            assert "forward" not in vars(layer)
