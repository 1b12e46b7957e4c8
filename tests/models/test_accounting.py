"""FLOPs equal PyTorch's own count, cache bytes those allocated, parameters those stored."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efficientllm.data.packing import IGNORED
from efficientllm.models.accounting import (
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
)
from efficientllm.models.build import build_decoder
from efficientllm.training.losses import training_loss
from tests.models.conftest import FAMILIES

VARIANTS: list[dict[str, Any]] = [
    {"mixer": mixer, "feedforward": feedforward, "tie_embeddings": tied}
    for mixer in ("gqa", "mqa", "mha")
    for feedforward, tied in (("swiglu", True), ("swiglu", False), ("moe", True))
] + [FAMILIES["mla"], FAMILIES["pythia"], FAMILIES["relative"], FAMILIES["mamba2"], FAMILIES["rwkv"]]


@pytest.mark.parametrize(
    "variant",
    VARIANTS,
    ids=lambda variant: "-".join(str(value) for value in variant.values() if not isinstance(value, dict)),
)
def test_flops_equal_the_counted(make_config, tokens, variant):
    config = make_config(**variant)
    decoder = build_decoder(config)
    for part in decoder.components():
        if part.fast_kernel != "fused attention" and part.kind == "mixer":
            part.kernel = "reference"  # the recurrence is what the mathematics asks for
    # PyTorch counts all T x T scores, causal or not, and knows the plain attention kernel best
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = decoder(tokens)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        output.logits.sum().backward()
    context = tokens.shape[1]
    assert forward.get_total_flops() == tokens.numel() * flops_per_token(config, [context], training=False)
    both = forward.get_total_flops() + backward.get_total_flops()
    expected = tokens.numel() * flops_per_token(config, [context], training=True)
    # the state before a recurrence's first token is a constant, which needs no gradient
    assert both == (pytest.approx(expected, rel=1e-3) if config.mixer == "rwkv7" else expected)


@pytest.mark.parametrize("labelled", [1, 4, 11])
def test_the_head_counts_for_the_tokens_that_bear_loss(make_config, tokens, labelled):
    config = make_config()
    decoder = build_decoder(config)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -labelled:] = tokens[:, -labelled:]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss, _ = training_loss(decoder, tokens, labels)
        loss.backward()
    share = labelled / tokens.shape[1]
    each = flops_per_token(config, [tokens.shape[1]], training=True, scored=share)
    assert counted.get_total_flops() == pytest.approx(tokens.numel() * each, rel=1e-12)


def test_causal_tokens_are_counted_one_by_one(make_config):
    """The mean of the contexts would not do for sparse attention, which sees a part of the later ones only."""
    sparse, dense = make_config(**FAMILIES["nsa"]), make_config()
    contexts = range(1, 129)
    for config in (sparse, dense):
        each = [flops_per_token(config, [context], training=False) for context in contexts]
        found = flops_per_token(config, contexts, training=False)
        assert found == pytest.approx(sum(each) / len(each), rel=1e-12)
        # on both sides of the mean, so that what a token sees of its own block is its mean too
        near_the_mean = flops_per_token(config, range(57, 73), training=False)
        assert (
            found < near_the_mean * (1 - 1e-4) if config is sparse else found == pytest.approx(near_the_mean, rel=1e-12)
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes(make_config, family, dtype):
    config = make_config(**FAMILIES[family])
    decoder = build_decoder(config, device="meta")
    shorter, longer = (decoder.new_cache(3, length, dtype=dtype).nbytes() for length in (160, 320))
    assert longer - shorter == 3 * 160 * cache_bytes_per_token(config, dtype.itemsize)
    if family in ("mqa", "gqa", "mha", "mla", "relative", "pythia"):
        assert longer == 2 * shorter


def test_parameters(make_config):
    config = make_config(feedforward="moe", tie_embeddings=False)
    decoder = build_decoder(config)
    counts = count_parameters(config)
    assert counts == count_parameters(decoder)
    assert counts.total == sum(parameter.numel() for parameter in decoder.parameters())
    expert = 3 * config.hidden_size * config.intermediate_size
    assert counts.total - counts.active == config.layers * 2 * expert  # two of four experts rest
