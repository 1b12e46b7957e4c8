"""The mixture of experts drops no token, and its balancing loss is Mixtral's."""

import pytest
import torch
from torch.nn import functional as F

from efficientllm.components.feedforwards.moe import MixtureOfExperts
from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.interfaces import Span


def naive(layer: MixtureOfExperts, x_nc: torch.Tensor) -> torch.Tensor:
    """Computes the mixture token by token."""
    rows = []
    for x in x_nc:
        scores, chosen = (layer.router @ x).topk(layer.options.experts_per_token)
        row = torch.zeros_like(x)
        for weight, expert in zip(scores.softmax(dim=-1), chosen.tolist(), strict=True):
            gate, up = (layer.gate_up_proj[expert] @ x).chunk(2)
            row = row + weight * (layer.down_proj[expert] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture
def layer(make_decoder) -> MixtureOfExperts:
    return make_decoder(feedforward="moe").layers[0].feedforward


@pytest.mark.parametrize("skewed", [False, True], ids=["spread", "one expert takes all"])
@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_dropless(make_decoder, skewed, experts_per_token):
    options = {"experts": 5, "experts_per_token": experts_per_token, "load_balancing_weight": 0.0}
    layer = make_decoder(feedforward="moe", feedforward_options=options).layers[0].feedforward
    torch.manual_seed(3)
    x = torch.randn(2, 9, 32)
    if skewed:
        x[..., 0] = 50.0  # expert 3 reads this channel
        with torch.no_grad():
            layer.router[:, 0] = torch.tensor([0.0, 0.1, 0.0, 9.0, 0.0])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, _ = layer(ours, Span(0, 9), None)
    parameters = list(layer.parameters())
    gradients = torch.autograd.grad(found.square().sum(), [ours, *parameters])
    expected = naive(layer, theirs.view(-1, 32))
    reference = torch.autograd.grad(expected.square().sum(), [theirs, *parameters], materialize_grads=True)
    torch.testing.assert_close(found.view(-1, 32), expected, rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_balancing_loss_is_mixtrals(layer, padded):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(4)
    x = torch.randn(3, 8, 32)
    mask = torch.ones(3, 8, dtype=torch.bool)
    if padded:
        mask[1, :5] = False
    scores = F.linear(x.view(-1, 32), layer.router)
    expected = load_balancing_loss_func((scores,), 4, 2, mask.long() if padded else None)
    _, found = layer.train()(x, Span(0, 8, padding_mask_bt=mask if padded else None), None)
    torch.testing.assert_close(found, 0.02 * expected)


def test_balancing_losses_of_all_layers_are_summed(make_decoder, tokens):
    decoder = make_decoder(feedforward="moe", layers=3).train()
    losses = []
    for block in decoder.layers:
        block.feedforward.register_forward_hook(lambda module, inputs, output: losses.append(output[1]))
    output = decoder(tokens)
    assert len(losses) == 3
    torch.testing.assert_close(output.auxiliary_loss, sum(losses))
    output.auxiliary_loss.backward()
    assert all(float(block.feedforward.router.grad.abs().sum()) > 0 for block in decoder.layers)
    assert decoder.eval()(tokens).auxiliary_loss is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 8, "experts_per_token": 2}, "missing parameter 'feedforward.load_balancing_weight'"),
        ({"experts": 2, "experts_per_token": 3, "load_balancing_weight": 0.1}, "experts_per_token 3 exceeds experts 2"),
        ({"experts": 2, "expert_per_token": 1, "load_balancing_weight": 0.1}, "feedforward.expert"),
    ],
)
def test_options(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(feedforward="moe", feedforward_options=options), device="meta")
