"""RWKV-7: chunks equal the recurrence, and the layers equal their equations, written out token by token."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from efficientllm.components.feedforwards.rwkv7_channel_mix import RWKV7ChannelMixing
from efficientllm.components.mixers.rwkv7 import RWKV7TimeMixing, default_rank
from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.delta_rule import (
    AffineScan,
    UnitLowerInverse,
    chunked_delta_rule,
    recurrent_delta_rule,
    two_level_scan,
)
from efficientllm.models.interfaces import Span
from tests.models.conftest import FAMILIES


def inputs(length: int, *, repeated: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(length)
    shape = (2, length, 3, 16)
    removal = F.normalize(torch.randn(shape), dim=-1)
    rate, log_decay = torch.rand(shape), -0.6065 * torch.rand(shape)
    if repeated:  # the same key again and again, replaced whole, hardly any decay: powers of the chunk's matrix explode
        removal = removal[:, :1].expand(shape).contiguous()
        rate, log_decay = torch.ones(shape), torch.full(shape, -1e-4)
    tensors = [torch.randn(shape), log_decay, torch.randn(shape), torch.randn(shape), -removal, removal * rate]
    return [tensor.requires_grad_() for tensor in (*tensors, torch.randn(2, 3, 16, 16))]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("chunk", [8, 16, 64])
@pytest.mark.parametrize("length", [1, 15, 64, 65, 130])
def test_chunks_equal_the_recurrence(length, chunk, repeated):
    given = inputs(length, repeated=repeated)
    outputs = [recurrent_delta_rule(*given), chunked_delta_rule(*given, chunk=chunk)]
    weights = [torch.randn_like(tensor) for tensor in outputs[0]]
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, weights, strict=True)), given) for found in outputs
    ]
    for plain, chunked in zip((*outputs[0], *gradients[0]), (*outputs[1], *gradients[1]), strict=True):
        assert float((plain - chunked).detach().abs().max() / plain.detach().abs().max()) < 2e-5


def test_inverse_and_scan_have_their_gradients():
    torch.manual_seed(0)
    lower = torch.randn(2, 32, 32, dtype=torch.float64).tril(-1).mul_(0.3).requires_grad_()
    inverse = UnitLowerInverse.apply(lower)
    identity = torch.eye(32, dtype=torch.float64)
    torch.testing.assert_close(inverse @ (identity - lower), identity.expand(2, -1, -1))
    small = torch.randn(1, 16, 16, dtype=torch.float64).tril(-1).mul_(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: UnitLowerInverse.apply(x.tril(-1)), small)
    maps = [torch.randn(1, 2, 5, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    start = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(AffineScan.apply, (*maps, start))


@pytest.mark.parametrize("count", [1, 2, 5, 16, 23])
def test_two_level_scan_equals_the_loop(count):
    torch.manual_seed(count)
    transition, addition = 0.4 * torch.randn(2, 3, count, 8, 8), torch.randn(2, 3, count, 8, 8)
    start = torch.randn(2, 3, 8, 8)
    before, last = AffineScan.apply(transition, addition, start)
    looped = torch.cat((before[:, :, 1:], last.unsqueeze(2)), dim=2)
    torch.testing.assert_close(two_level_scan(transition, addition, start), looped, rtol=1e-4, atol=1e-4)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def time_mixing(layer: RWKV7TimeMixing, x: np.ndarray, first_value: np.ndarray | None) -> np.ndarray:
    """Equations 3 to 15 of the paper for one sequence `[T, C]`, one token and one head at a time."""
    p = {name: parameter.detach().double().numpy() for name, parameter in layer.named_parameters()}
    size, width = layer.options.head_size, x.shape[1]
    states = np.zeros((layer.heads, size, size))
    previous, out = np.zeros(width), []
    for t, token in enumerate(x):
        x_r, x_w, x_k, x_v, x_a, x_g = (token + (previous - token) * p["mix"][i] for i in range(6))
        previous = token
        r, k, v = p["r_proj.weight"] @ x_r, p["k_proj.weight"] @ x_k, p["v_proj.weight"] @ x_v
        d = p["decay.up.bias"] + p["decay.up.weight"] @ np.tanh(p["decay.down.weight"] @ x_w)
        w = np.exp(-np.exp(-0.5) * sigmoid(d))
        if first_value is not None:
            nu = sigmoid(p["value.up.bias"] + p["value.up.weight"] @ (p["value.down.weight"] @ x_v))
            v = v + (first_value[t] - v) * nu
        a = sigmoid(p["learning_rate.up.bias"] + p["learning_rate.up.weight"] @ (p["learning_rate.down.weight"] @ x_a))
        g = p["gate.up.weight"] @ sigmoid(p["gate.down.weight"] @ x_g)
        kappa, k = k * p["removal_scale"], k * (1 + (a - 1) * p["replacement_scale"])
        mixed = np.zeros(width)
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            unit = kappa[part] / np.linalg.norm(kappa[part])
            transition = np.diag(w[part]) - np.outer(unit, a[part] * unit)
            states[head] = states[head] @ transition + np.outer(v[part], k[part])
            y = states[head] @ r[part]
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5 * size)
            y = y * p["norm.weight"][part] + p["norm.bias"][part]
            mixed[part] = y + (r[part] * p["bonus"][head] * k[part]).sum() * v[part]
        out.append(p["o_proj.weight"] @ (g * mixed))
    return np.array(out)


@pytest.mark.parametrize("kernel", ["reference", "fast"])
@pytest.mark.parametrize("layer", [0, 1])
def test_time_mixing_follows_the_equations(make_config, layer, kernel):
    torch.manual_seed(0)
    mixer = RWKV7TimeMixing(make_config(**FAMILIES["rwkv"]), layer)
    mixer.kernel = kernel
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.4)
    x, first = torch.randn(2, 21, 32), torch.randn(2, 21, 32)
    span = Span(0, 21, shared={"rwkv7_first_value": first} if layer else {})
    found = mixer(x, span, None).detach()
    for row in range(2):
        values = first[row].double().numpy() if layer else None
        expected = torch.from_numpy(time_mixing(mixer, x[row].double().numpy(), values)).float()
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=2e-4)


def test_channel_mixing_follows_the_equations(make_config):
    torch.manual_seed(0)
    layer = RWKV7ChannelMixing(make_config(**FAMILIES["rwkv"]), 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    x = torch.randn(2, 9, 32)
    found, loss = layer(x, Span(0, 9), None)
    assert loss is None
    for t in range(9):
        previous = x[:, t - 1] if t else torch.zeros(2, 32)
        mixed = x[:, t] + (previous - x[:, t]) * layer.mix
        expected = torch.relu(mixed @ layer.k_proj.weight.T).square() @ layer.v_proj.weight.T
        torch.testing.assert_close(found[:, t], expected, rtol=1e-4, atol=1e-5)


def test_published_initialization(make_config):
    torch.manual_seed(0)
    decoder = build_decoder(make_config(**FAMILIES["rwkv"], layers=3))
    first, last = decoder.blocks()[0].mixer, decoder.blocks()[2].mixer
    assert first.value is None
    assert last.value is not None
    assert not first.o_proj.weight.any()
    assert not decoder.blocks()[1].feedforward.v_proj.weight.any()
    assert not last.decay.down.weight.any()
    assert first.mix[0, 0] == 1
    assert bool((first.mix >= last.mix).all()), "deeper layers look back less"
    assert float(last.norm.weight[0]) == 1
    assert (default_rank(4096, 2.5), default_rank(128, 1.7)) == (160, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_size": 24}, "hidden_size 32 is not a multiple"), ({"head_size": 16, "chunk": 24}, "not a power of two")],
)
def test_unfit_options(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(**{**FAMILIES["rwkv"], "mixer_options": options}))
