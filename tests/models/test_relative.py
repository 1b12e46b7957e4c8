"""The relative bias is T5's."""

import pytest
import torch

from efficientllm.components.positions.relative import distance_buckets
from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.interfaces import Span


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
    found = table[:, distance.clamp_min(0)]
    assert torch.equal(found[:, visible], expected[0][:, visible])


def test_the_decoder_adds_it_below_the_diagonal(make_decoder):
    decoder = make_decoder(position="relative")
    span = Span(0, 9)
    decoder._share(span, torch.empty(1, 9, 32))
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
