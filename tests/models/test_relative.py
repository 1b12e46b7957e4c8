"""The relative bias is T5's."""

import pytest
import torch

from efficientllm.components.positions.relative import distance_buckets
from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.interfaces import Span
from efficientllm.models.spans import share


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 16), (16, 500)])
def test_bias_equals_t5(make_config, buckets, max_distance):
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    options = {"buckets": buckets, "max_distance": max_distance}
    decoder = build_decoder(make_config(position="relative", position_options=options))
    settings = T5Config(
        d_model=32, d_kv=8, num_heads=4, is_decoder=True, relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
    )  # fmt: skip
    theirs = T5Attention(settings, has_relative_attention_bias=True)
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(decoder.position.bias)
    expected = theirs.compute_bias(300, 300)
    table = decoder.position.bias_by_distance(300, torch.empty(0))
    distance = torch.arange(300)[:, None] - torch.arange(300)
    visible = distance >= 0
    assert table.shape == (4, max_distance + 1)
    found = table[:, distance.clamp(0, max_distance)]
    assert torch.equal(found[:, visible], expected[0][:, visible])


@pytest.mark.parametrize("kernel", ["reference", "fast"])
def test_attention_equals_t5(make_decoder, kernel):
    """T5's scores are not scaled: it has ours with queries of sqrt(D) times less."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    options = {"buckets": 8, "max_distance": 12}
    decoder = make_decoder(mixer="mha", position="relative", position_options=options)
    decoder.select_kernel(kernel)
    mixer = decoder.blocks()[0].mixer
    settings = T5Config(
        d_model=32, d_kv=8, num_heads=4, dropout_rate=0.0, is_decoder=True, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, attn_implementation="eager",
    )  # fmt: skip
    theirs = T5Attention(settings, has_relative_attention_bias=True, layer_idx=0)
    scale = 8**-0.5
    pairs = [
        (mixer.q_proj.weight, theirs.q.weight, scale), (mixer.k_proj.weight, theirs.k.weight, 1.0),
        (mixer.v_proj.weight, theirs.v.weight, 1.0), (mixer.o_proj.weight, theirs.o.weight, 1.0),
        (decoder.position.bias, theirs.relative_attention_bias.weight, 1.0),
    ]  # fmt: skip
    with torch.no_grad():
        decoder.position.bias.normal_()
        for ours, counterpart, factor in pairs:
            counterpart.copy_(factor * ours)
    hidden = torch.randn(2, 40, 32, requires_grad=True)
    span = Span(0, 40)
    share(span, hidden, decoder.position, mixer)
    found = mixer(hidden, span, None)
    future = torch.full((40, 40), -torch.inf).triu(1)[None, None]
    expected, _, _ = theirs(hidden, mask=future)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found)
    ours = torch.autograd.grad(found, [hidden, *(weight for weight, _, _ in pairs)], upstream)
    wanted = torch.autograd.grad(expected, [hidden, *(weight for _, weight, _ in pairs)], upstream)
    for gradient, counterpart, factor in zip(ours, wanted, [1.0, *(factor for _, _, factor in pairs)], strict=True):
        torch.testing.assert_close(gradient, factor * counterpart, rtol=1e-4, atol=1e-4)


def test_the_decoder_adds_it_below_the_diagonal(make_decoder):
    decoder = make_decoder(position="relative")
    span = Span(0, 9)
    share(span, torch.empty(1, 9, 32), decoder.position, decoder.blocks()[0].mixer)
    table = decoder.position.bias_by_distance(9, torch.empty(0))
    for query in range(9):
        for key in range(9):
            expected = table[:, query - key] if key <= query else torch.full((4,), -torch.inf)
            assert torch.equal(span.attention_mask[0, :, query, key], expected)


def test_biases_are_learned(make_decoder, tokens):
    decoder = make_decoder(position="relative")
    decoder(tokens).logits.square().mean().backward()
    used = distance_buckets(17, 32, 128).unique()
    assert (decoder.position.bias.grad[used] != 0).all()


def test_buckets_need_room(make_config):
    with pytest.raises(ParameterError, match="max_distance 8 must exceed half of the buckets"):
        build_decoder(make_config(position="relative", position_options={"buckets": 16, "max_distance": 8}))


@pytest.mark.parametrize(("width", "applied"), [(8, False), (16, True)])
def test_heads_too_narrow_for_the_fused_kernel_get_a_mask(make_config, width, applied):
    decoder = build_decoder(make_config(position="relative", hidden_size=4 * width, heads=4))
    assert decoder.blocks()[0].mixer.applies_bias(torch.device("cuda")) == applied


@pytest.mark.parametrize("band", [1, 7, 128, 200])
@pytest.mark.parametrize("length", [5, 128, 300])
def test_banded_gradient_equals_autograd(band, length):
    from efficientllm.models.biased_attention import banded_bias_gradient

    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(2, heads, length, 8, generator=generator) for heads in (4, 2, 2, 4))
    bias = torch.randn(4, band + 1, generator=generator, requires_grad=True)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2) * 0.3 + bias[:, distance.clamp(0, band)]
    scores = scores.masked_fill(distance < 0, -torch.inf)
    out = scores.softmax(dim=-1) @ v.repeat_interleave(2, dim=1)
    (expected,) = torch.autograd.grad(out, bias, upstream)
    found = banded_bias_gradient(q, k, v, bias.detach(), out.detach(), scores.logsumexp(-1).detach(), upstream, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
