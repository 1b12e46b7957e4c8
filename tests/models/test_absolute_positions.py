"""Sinusoidal and learned positions beside those of Transformers' Marian and GPT-2."""

import pytest
import torch

from efficientllm.components.positions.sinusoidal import SinusoidalPosition
from efficientllm.models.interfaces import Span


@pytest.fixture
def marian_table() -> torch.Tensor:
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    return MarianSinusoidalPositionalEmbedding(64, 32).create_weight()


@pytest.mark.parametrize("deviation", [1.0, 0.25, 32**-0.5])
def test_sinusoidal_positions_equal_marian(make_config, marian_table, deviation):
    """The embedding is divided by its initial deviation, which for 1 / sqrt(C) is the paper's factor and Marian's."""
    config = make_config(position="sinusoidal", embedding_deviation=deviation)
    hidden = (deviation * torch.randn(2, 64, 32)).requires_grad_()
    position, span = SinusoidalPosition(config), Span(0, 64)
    table = position.embed(torch.zeros(1, 64, 32), span)
    torch.testing.assert_close(table[0], marian_table, rtol=0, atol=2e-6)
    found = position.embed(hidden, span)
    torch.testing.assert_close(found, hidden / deviation + table, rtol=0, atol=1e-6)
    found.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.full_like(hidden, 1 / deviation))


def test_the_decoder_embeds_so(make_decoder, marian_table, tokens):
    decoder = make_decoder(position="sinusoidal", embedding_deviation=0.5)
    embedded = []
    decoder.layers[0].register_forward_pre_hook(lambda block, inputs: embedded.append(inputs[0]))
    decoder(tokens)
    cache = decoder.new_cache(3, 17)
    decoder(tokens[:, :5], cache=cache)
    decoder(tokens[:, 5:], cache=cache)
    expected = 2.0 * decoder.embed_tokens.weight[tokens] + marian_table[:17]
    for found in (embedded[0], torch.cat(embedded[1:], dim=1)):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_learned_positions_equal_gpt2(make_decoder, tokens):
    from transformers import GPT2Config, GPT2Model

    decoder = make_decoder(position="learned")
    theirs = GPT2Model(GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=1, n_head=4)).eval()
    tables = {
        decoder.embed_tokens.weight: theirs.wte.weight,
        decoder.position.embed_positions.weight: theirs.wpe.weight,
    }
    with torch.no_grad():
        for table, counterpart in tables.items():
            counterpart.copy_(table)
    embedded = []
    decoder.layers[0].register_forward_pre_hook(lambda block, inputs: embedded.append(inputs[0]))
    theirs.h[0].register_forward_pre_hook(lambda block, inputs: embedded.append(inputs[0]))
    decoder(tokens)
    theirs(tokens)
    ours, expected = embedded
    assert ours.shape == expected.shape == (3, 17, 32)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    upstream = torch.randn_like(ours)
    found, wanted = (
        torch.autograd.grad(x, list(weights), upstream)
        for x, weights in ((ours, tables.keys()), (expected, tables.values()))
    )
    for ours, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
