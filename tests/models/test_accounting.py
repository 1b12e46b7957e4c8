"""FLOPs equal PyTorch's own count, cache bytes those allocated, parameters those stored."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efficientllm.models.accounting import (
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
    mean_causal_context,
)
from efficientllm.models.build import build_decoder
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
    assert forward.get_total_flops() == tokens.numel() * flops_per_token(config, context, training=False)
    both = forward.get_total_flops() + backward.get_total_flops()
    expected = tokens.numel() * flops_per_token(config, context, training=True)
    # the state before a recurrence's first token is a constant, which needs no gradient
    assert both == (pytest.approx(expected, rel=1e-3) if config.mixer == "rwkv7" else expected)


def test_mean_context():
    assert mean_causal_context(5) == sum(range(1, 6)) / 5


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
    assert counts.embedding == 61 * 32
