"""Causality, decoding from a cache, padding, and the hooks of positional encodings."""

import itertools
import math

import pytest
import torch

from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.models.interfaces import Position
from tests.models.conftest import FAMILIES

COMBINATIONS = list(
    itertools.product(
        ["gqa", "mqa", "mha", "mla"],
        ["rope", "sinusoidal", "learned", "relative", "none", "distance-bias"],
        ["swiglu", "moe"],
    )
)


class DistanceBias(Position):
    """A bias of the scores by the distance between query and key, a different one for each head."""

    def bias_by_distance(self, length: int, like: torch.Tensor) -> torch.Tensor:
        slopes = torch.tensor([0.1, -0.2, 0.3, -0.4], dtype=like.dtype)
        return slopes[:, None] * torch.arange(length).to(like.dtype)


def build(make_decoder, make_config, mixer: str, position: str, feedforward: str) -> Decoder:
    if position != "distance-bias":
        return make_decoder(mixer=mixer, position=position, feedforward=feedforward)
    decoder = make_decoder(mixer=mixer, position="none", feedforward=feedforward)
    decoder.position = DistanceBias(make_config(position="none"))
    return decoder


@pytest.mark.parametrize(("mixer", "position", "feedforward"), COMBINATIONS)
def test_cached_decoding_padding_and_causality(make_decoder, make_config, tokens, mixer, position, feedforward):
    check_decoding(build(make_decoder, make_config, mixer, position, feedforward), tokens)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gqa", "mqa", "mha", "mla", "relative")])
def test_families_decode(make_decoder, tokens, family):
    check_decoding(make_decoder(**FAMILIES[family]), tokens)


@torch.no_grad()
def check_decoding(decoder: Decoder, tokens: torch.Tensor) -> None:
    """Cached chunks equal the whole, no token sees a later one, and padding on the left changes nothing."""
    full = decoder(tokens).logits

    cache = decoder.new_cache(3, 17)
    chunks = [(0, 6), (6, 11)] + [(step, step + 1) for step in range(11, 17)]
    cached = [decoder(tokens[:, start:end], cache=cache).logits for start, end in chunks]
    torch.testing.assert_close(torch.cat(cached, dim=1), full, rtol=0, atol=1e-4)
    assert cache.length == 17

    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 61
    later = decoder(changed).logits
    assert torch.equal(later[:, :9], full[:, :9]) or torch.allclose(later[:, :9], full[:, :9], atol=1e-5)
    assert float((later[:, 9:] - full[:, 9:]).abs().max()) > 1e-3

    padding = torch.tensor([0, 2, 5])
    padded = torch.full((3, 22), 7)
    mask = torch.zeros(3, 22, dtype=torch.bool)
    for row, left in enumerate(padding):
        padded[row, left : left + 17] = tokens[row]
        mask[row, left : left + 17] = True
    shifted = decoder(padded, padding_mask=mask).logits
    cache = decoder.new_cache(3, 22)
    pieces = [decoder(padded[:, :8], cache=cache, padding_mask=mask[:, :8]).logits]
    pieces += [decoder(padded[:, 8:15], cache=cache, padding_mask=mask[:, 8:15]).logits]
    pieces += [decoder(padded[:, step : step + 1], cache=cache).logits for step in range(15, 17)]
    steps = torch.cat(pieces, dim=1)
    for row, left in enumerate(padding):
        torch.testing.assert_close(shifted[row, left : left + 17], full[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(steps[row, left:17], full[row, : 17 - left], rtol=0, atol=1e-4)
    assert torch.isfinite(shifted).all()


def test_grouped_with_all_heads_is_multi_head(make_decoder, tokens):
    grouped, multi = make_decoder(mixer="gqa", key_value_heads=4), make_decoder(mixer="mha")
    multi.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped(tokens).logits, multi(tokens).logits)
    assert not torch.allclose(make_decoder(mixer="gqa")(tokens).logits, grouped(tokens).logits, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cache_reorder_and_take(make_decoder, tokens, family):
    decoder = make_decoder(**FAMILIES[family])
    mask = torch.ones(3, 17, dtype=torch.bool)
    mask[1, :4] = False
    cache = decoder.new_cache(3, 20)
    decoder(tokens, cache=cache, padding_mask=mask)
    following = torch.randint(61, (6, 2), generator=torch.Generator().manual_seed(2))
    repeated = cache.take(torch.tensor([0, 0, 1, 1, 2, 2]))
    found = decoder(following, cache=repeated).logits
    whole = torch.cat([tokens.repeat_interleave(2, 0), following], dim=1)
    whole_mask = torch.cat([mask.repeat_interleave(2, 0), torch.ones(6, 2, dtype=torch.bool)], dim=1)
    expected = decoder(whole, padding_mask=whole_mask).logits[:, 17:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    order = torch.tensor([2, 1, 1])
    cache.reorder(order)
    found = decoder(following[:3], cache=cache).logits
    whole = torch.cat([tokens[order], following[:3]], dim=1)
    whole_mask = torch.cat([mask[order], torch.ones(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(found, decoder(whole, padding_mask=whole_mask).logits[:, 17:], rtol=0, atol=1e-4)


def test_cache_refuses_what_does_not_fit(make_decoder, tokens):
    decoder = make_decoder()
    with pytest.raises(ParameterError, match="larger max_length"):
        decoder(tokens, cache=decoder.new_cache(3, 16))
    with pytest.raises(ParameterError, match="batch of 3"):
        decoder(tokens, cache=decoder.new_cache(2, 32))


def test_initialization_follows_the_seed(make_config):
    config = make_config(hidden_size=128, layers=4, feedforward="moe", position="learned", tie_embeddings=False)
    torch.manual_seed(5)
    first = build_decoder(config)
    torch.manual_seed(5)
    second = build_decoder(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    for name, parameter in first.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        residual = name.endswith(("o_proj.weight", "down_proj"))
        expected = 0.02 / math.sqrt(8) if residual else 0.02
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name


@pytest.mark.parametrize("family", FAMILIES)
def test_initialization_in_sixteen_bits(make_config, family):
    config = make_config(**FAMILIES[family])
    torch.manual_seed(5)
    half = build_decoder(config, dtype=torch.bfloat16)
    torch.manual_seed(5)
    full = build_decoder(config)
    for (name, drawn), expected in zip(half.named_parameters(), full.parameters(), strict=True):
        assert drawn.dtype == torch.bfloat16
        assert float(drawn.detach().float().norm()) == pytest.approx(float(expected.detach().norm()), rel=0.1), name


def test_learned_positions_end(make_decoder):
    decoder = make_decoder(position="learned", context_length=8)
    long = torch.zeros(1, 10, dtype=torch.long)
    with pytest.raises(ParameterError, match="10 tokens does not fit the 8 learned positions"):
        decoder(long)
    mask = torch.tensor([[False] * 3 + [True] * 7])
    assert decoder(long, padding_mask=mask).logits.shape == (1, 10, 61)


def test_evaluation_before_training(make_decoder, tokens):
    decoder = make_decoder()
    with torch.inference_mode():
        decoder(tokens)
    decoder(tokens).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("changes", [{"feedforward": "moe"}, *FAMILIES.values()], ids=["moe", *FAMILIES])
def test_gradient_checkpointing(make_decoder, tokens, changes):
    gradients = []
    for enabled in (False, True):
        decoder = make_decoder(**changes).train()
        decoder.gradient_checkpointing = enabled
        output = decoder(tokens)
        loss = output.logits.square().mean()
        (loss if output.auxiliary_loss is None else loss + output.auxiliary_loss).backward()
        gradients.append([parameter.grad for parameter in decoder.parameters()])
        assert all(gradient is not None for gradient in gradients[-1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    "changes",
    [{"position": "sinusoidal"}, {"feedforward": "moe"}, *FAMILIES.values()],
    ids=["sinusoidal", "moe", *FAMILIES],
)
@torch.no_grad()
def test_sixteen_bits_and_autocast(make_decoder, tokens, changes):
    decoder = make_decoder(**changes)
    full = decoder(tokens).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(tokens).logits
    half = decoder.to(torch.bfloat16)
    cache = half.new_cache(3, 17)
    if decoder.config.mixer == "gqa":
        assert cache.blocks[0].mixer["keys"].dtype == torch.bfloat16
    cached = torch.cat([half(tokens[:, :9], cache=cache).logits, half(tokens[:, 9:], cache=cache).logits], dim=1)
    for found in (mixed, half(tokens).logits, cached):
        assert found.dtype == torch.bfloat16
        correlation = torch.corrcoef(torch.stack([found.float().flatten(), full.flatten()]))[0, 1]
        assert float(correlation) > 0.98


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "not a multiple of heads"),
        ({"key_value_heads": 3}, "not a multiple of key_value_heads"),
        ({"mixer": "gka"}, "unknown mixer 'gka'; did you mean 'gqa'"),
        ({"position": "ropes"}, "did you mean 'rope'"),
        ({"position_options": {"bass": 1.0}}, "unknown parameter 'position.bass'; did you mean 'position.base'"),
        ({"mixer_options": {"window": 4}}, "unknown parameter 'mixer.window'"),
    ],
)
def test_unfit_configurations(make_config, change, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(**change))


def test_rope_needs_even_heads(make_config):
    with pytest.raises(ParameterError, match="even width"):
        build_decoder(make_config(hidden_size=36, heads=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_kernels_equal_plain_ones(make_decoder, tokens, family):
    results = []
    for kernel in ("reference", "auto"):
        decoder = make_decoder(**FAMILIES[family])
        for part in decoder.components():
            part.kernel = kernel
        logits = decoder(tokens).logits
        logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in decoder.parameters())])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-3, atol=1e-4)


def test_a_fast_kernel_that_cannot_run_is_an_error(make_decoder, tokens):
    decoder = make_decoder(**FAMILIES["nsa"])
    device = torch.device("cpu")
    assert decoder.kernels(device)["mixer"].startswith("masked scores of a few queries at a time (block-sparse")
    decoder.select_kernel("fast")
    for run in (lambda: decoder(tokens), lambda: decoder.kernels(device)):
        with pytest.raises(ParameterError, match=r"kernel 'fast': .* GPU.*; use kernel 'auto' or 'reference'"):
            run()
    decoder.select_kernel("reference")
    assert decoder.kernels(device)["mixer"] == "masked scores of a few queries at a time (asked for)"
    assert make_decoder().kernels(device)["mixer"] == "fused attention"
