"""RWKV-7: chunks equal the recurrence, and the layers equal their equations, written out token by token."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from efficientllm.components.feedforwards.rwkv7_channel_mix import RWKV7ChannelMixing
from efficientllm.components.mixers.rwkv7 import RWKV7TimeMixing, default_rank
from efficientllm.errors import ParameterError
from efficientllm.models import delta_rule
from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.models.delta_rule import (
    AffineScan,
    UnitLowerInverse,
    chunked_delta_rule,
    delta_rule_step,
    recurrent_delta_rule,
    two_level_scan,
)
from efficientllm.models.interfaces import Span
from tests.models.conftest import FAMILIES
from tests.models.test_decoder import check_decoding


@pytest.fixture
def make_live(make_decoder) -> Callable[..., Decoder]:
    """Builds decoders none of whose weights is zero, as the published initial ones of the outputs are.

    With those, the layers would add nothing to the residual stream, and any error in them would pass.
    """

    def make(**changes) -> Decoder:
        decoder = make_decoder(**{**FAMILIES["rwkv"], "layers": 3, **changes})
        with torch.no_grad():
            for parameter in decoder.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return decoder

    return make


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


@pytest.mark.parametrize("repeated", [False, True])
def test_chunks_equal_the_recurrence_in_double_precision(repeated):
    given = [tensor.detach().double().requires_grad_() for tensor in inputs(65, repeated=repeated)]
    found = [recurrent_delta_rule(*given), chunked_delta_rule(*given, chunk=16)]
    weights = [torch.randn_like(tensor) for tensor in found[0]]
    results = [
        [*y, *torch.autograd.grad(sum((a * b).sum() for a, b in zip(y, weights, strict=True)), given)] for y in found
    ]
    for plain, chunked in zip(*results, strict=True):
        assert chunked.dtype == torch.float64
        torch.testing.assert_close(chunked, plain, rtol=1e-8, atol=1e-8)


def test_a_step_is_a_token_of_the_recurrence():
    *tokens, state = (tensor.detach() for tensor in inputs(1))
    outputs, last = recurrent_delta_rule(*tokens, state)
    output, after = delta_rule_step(*(tensor[:, 0] for tensor in tokens), state)
    torch.testing.assert_close(output, outputs[:, 0])
    torch.testing.assert_close(after, last)


@pytest.mark.parametrize("chunk", [64, 128])
def test_strongest_decay_stays_finite(chunk):
    given = inputs(256)
    given[1] = torch.full_like(given[1], -0.6066).requires_grad_()
    results = []
    for y, last in (recurrent_delta_rule(*given), chunked_delta_rule(*given, chunk=chunk)):
        results.append([y, last, *torch.autograd.grad(y.square().mean() + last.square().mean(), given)])
    for plain, chunked in zip(*results, strict=True):
        assert float((plain - chunked).detach().abs().max() / plain.detach().abs().max()) < 1e-4


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


def test_two_level_scan_has_its_gradients(monkeypatch):
    monkeypatch.setattr(delta_rule, "_scan", two_level_scan)
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 5, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    start = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(AffineScan.apply, (*maps, start))


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


def test_live_layers_decode(make_live, tokens):
    decoder = make_live()
    check_decoding(decoder, tokens)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 61
    with torch.no_grad():
        difference = (decoder(changed).logits - decoder(tokens).logits).abs().amax(dim=(0, 2))
    assert float(difference[:5].max()) < 1e-5
    assert float(difference[6:].min()) > 1e-3, "later tokens do not hear of an earlier one"


@torch.no_grad()
def test_live_cache_reorders(make_live, tokens):
    decoder = make_live()
    cache = decoder.new_cache(3, 20)
    decoder(tokens, cache=cache)
    order = torch.tensor([2, 0, 0])
    cache.reorder(order)
    following = torch.tensor([[3, 4], [5, 6], [7, 8]])
    expected = decoder(torch.cat([tokens[order], following], dim=1)).logits[:, 17:]
    torch.testing.assert_close(decoder(following, cache=cache).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", ["checkpointing", "reference"])
def test_live_gradients_agree_and_reach_every_weight(make_live, tokens, change):
    gradients = []
    for changed in (False, True):
        decoder = make_live().train()
        if changed and change == "checkpointing":
            decoder.gradient_checkpointing = True
        elif changed:
            decoder.select_kernel("reference")
        decoder(tokens).logits.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    for name, plain in gradients[0].items():
        assert plain is not None, name
        assert plain.any(), name
        assert float((plain - gradients[1][name]).abs().max() / plain.abs().max()) < 1e-4, name


@torch.no_grad()
def test_live_sixteen_bits(make_live, tokens):
    decoder = make_live()
    full = decoder(tokens).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(tokens).logits
    half = decoder.to(torch.bfloat16)
    cache = half.new_cache(3, 17)
    assert cache.blocks[0].mixer["state"].dtype == torch.float32
    cached = torch.cat([half(tokens[:, :9], cache=cache).logits, half(tokens[:, 9:], cache=cache).logits], dim=1)
    for found in (mixed, half(tokens).logits, cached):
        assert found.dtype == torch.bfloat16
        correlation = torch.corrcoef(torch.stack([found.float().flatten(), full.flatten()]))[0, 1]
        assert float(correlation) > 0.98


@pytest.mark.parametrize("kernel", ["reference", "fast"])
@torch.no_grad()
def test_padding_leaves_a_filled_state_alone(make_live, kernel):
    mixer = make_live().blocks()[0].mixer
    mixer.kernel = kernel
    x = torch.randn(2, 9, 32)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[:, 6:] = False
    states = [mixer.new_cache(2, 9, torch.float32, "cpu") for _ in range(2)]
    mixer(x[:, :6], Span(0, 6), states[0])
    mixer(x, Span(0, 9, padding_mask_bt=real), states[1])
    assert states[0]["state"].any()
    torch.testing.assert_close(states[1]["state"], states[0]["state"])


def test_first_value_gets_gradients_from_later_layers(make_live):
    first, second = (block.mixer for block in make_live().blocks()[:2])
    x, span = torch.randn(2, 9, 32), Span(0, 9)
    first(x, span, None)
    second(x, span, None).square().sum().backward()
    assert first.v_proj.weight.grad is not None
    assert first.v_proj.weight.grad.any()


@pytest.mark.parametrize("change", [{"mixer": "gqa", "mixer_options": {}}, {"feedforward": "swiglu"}])
def test_block_takes_components_that_need_no_layer(make_live, tokens, change):
    assert make_live(**change)(tokens).logits.isfinite().all()


def test_other_blocks_do_not_tell_the_layer(make_config):
    with pytest.raises(ParameterError, match="block 'pre_norm' does not tell it; use block 'rwkv'"):
        build_decoder(make_config(**{**FAMILIES["rwkv"], "block": "pre_norm"}))


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
    assert last.norm.weight[0] == 1
    scales = torch.linalg.svdvals(last.decay.up.weight.detach())
    torch.testing.assert_close(scales, torch.full_like(scales, 0.1))
    assert (default_rank(4096, 2.5), default_rank(128, 1.7)) == (160, 32)


@torch.no_grad()
def test_published_numbers(make_config):
    """RWKV-LM's `RWKV_Tmix_x070` and `RWKV_CMix_x070`, with their names, for 8 channels and the second layer of three.

    With i the channel, linear = i / 7 - 0.5, and zigzag = z |z| of the place in the head brought to [-1, 1], z.
    """
    options = {**FAMILIES["rwkv"]["mixer_options"], "head_size": 4, "value_rank": 32}
    config = make_config(**{**FAMILIES["rwkv"], "mixer_options": options, "hidden_size": 8, "layers": 3})
    mixer, feedforward = RWKV7TimeMixing(config, 1), RWKV7ChannelMixing(config, 1)
    for parameter in (*mixer.parameters(), *feedforward.parameters()):
        parameter.fill_(7.0)  # no number may be left as it was
    mixer.norm.bias.zero_()  # the decoder's, as all biases'
    mixer.initialize()
    feedforward.initialize()
    x_r = [1, 0.242142, 0.168762, 0.122587, 0.088278, 0.060744, 0.037631, 0.017647]  # 1 - (i / 8) ** (0.2 * 2 / 3)
    x_w = [1, 0.712825, 0.564725, 0.444839, 0.340246, 0.245728, 0.158534, 0.076993]  # 0.9 in the place of 0.2
    x_k = [1, 0.621071, 0.476353, 0.367276, 0.276365, 0.196947, 0.125630, 0.060413]  # 0.7
    published = {
        "mix": [x_r, x_w, x_k, x_k, x_w, x_r],
        # w0: -6 + 6 (i / 7) ** (1 + 0.5 ** 0.3) + 0.5 + 2.5 zigzag
        "decay.up.bias": [-8, -5.601328, -4.602549, -1.707935, -5.823769, -2.516931, -0.684616, 3],
        # a0: -0.19 + 0.3 zigzag + 0.4 linear
        "learning_rate.up.bias": [-0.69, -0.366190, -0.242381, 0.081429, -0.461429, -0.137619, -0.013810, 0.31],
        # v0: 0.73 - 0.4 linear
        "value.up.bias": [0.93, 0.872857, 0.815714, 0.758571, 0.701429, 0.644286, 0.587143, 0.53],
        # k_k: 0.71 - 0.1 linear
        "removal_scale": [0.76, 0.745714, 0.731429, 0.717143, 0.702857, 0.688571, 0.674286, 0.66],
        "replacement_scale": [1.02] * 8,  # k_a
        "bonus": [[-0.04] * 4] * 2,  # r_k
        "norm.weight": [0.752898] * 8,  # ln_x: (2 / 3) ** 0.7
        "norm.bias": [0.0] * 8,
        "o_proj.weight": [[0.0] * 8] * 8,
    }
    found = dict(mixer.named_parameters())
    for name, numbers in published.items():
        torch.testing.assert_close(found[name], torch.tensor(numbers, dtype=torch.float32), rtol=0, atol=2e-6)
    for part, scale in (("decay", 0.1), ("learning_rate", 0.1), ("gate", 0.1), ("value", 0.2)):
        assert not found[f"{part}.down.weight"].any()
        scales = torch.linalg.svdvals(found[f"{part}.up.weight"])  # orthogonal: 0.1, or 0.1 sqrt(rank / width)
        torch.testing.assert_close(scales, torch.full_like(scales, scale), msg=part)
    x_k = [1, 0.336850, 0.239543, 0.176131, 0.127958, 0.088661, 0.055242, 0.026032]  # 1 - (i / 8) ** ((2 / 3) ** 4)
    torch.testing.assert_close(feedforward.mix, torch.tensor(x_k), rtol=0, atol=2e-6)
    assert not feedforward.v_proj.weight.any()


@torch.no_grad()
def test_published_scales_of_the_projections(make_config):
    """Uniform within 0.5 / sqrt(C), the keys of the time mixing within 0.05 / sqrt(C): 1/16 and 1/160 for 64 channels."""
    torch.manual_seed(0)
    block = build_decoder(make_config(**{**FAMILIES["rwkv"], "hidden_size": 64})).blocks()[1]
    mixer, feedforward = block.mixer, block.feedforward
    for projection, bound in (
        (mixer.r_proj, 1 / 16), (mixer.k_proj, 1 / 160), (mixer.v_proj, 1 / 16), (feedforward.k_proj, 1 / 16),
    ):  # fmt: skip
        assert 0.99 * bound < float(projection.weight.max()) <= bound
        assert -bound <= float(projection.weight.min()) < -0.99 * bound
        assert float(projection.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_size": 24}, "hidden_size 32 is not a multiple"),
        ({"head_size": 16, "chunk": 24}, "not a power of two"),
        ({"head_size": 16, "chunk": 256}, "mixer.chunk"),
        ({"head_size": 1}, "mixer.head_size"),
    ],
)
def test_unfit_options(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(**{**FAMILIES["rwkv"], "mixer_options": options}))
