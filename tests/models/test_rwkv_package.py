"""RWKV-7 beside its authors' own inference code, the package `rwkv` of PyPI."""

import importlib

import pytest
import torch

from efficientllm.components.feedforwards.rwkv7_channel_mix import RWKV7ChannelMixing
from efficientllm.components.mixers.rwkv7 import RWKV7TimeMixing
from efficientllm.models.interfaces import Span
from tests.models.conftest import FAMILIES

WIDTH, SIZE = 128, 64  # their head size


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("rwkv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_V7_ON", "1")
        patch.setenv("RWKV_CUDA_ON", "0")
        return importlib.import_module("rwkv.model")


@pytest.fixture
def config(make_config):
    return make_config(**{**FAMILIES["rwkv"], "hidden_size": WIDTH, "layers": 3, "mixer_options": {"head_size": SIZE}})


def randomized(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


@pytest.mark.parametrize("kernel", ["reference", "fast"])
@pytest.mark.parametrize("layer", [0, 2])
def test_time_mixing(theirs, config, layer, kernel):
    mixer = randomized(RWKV7TimeMixing(config, layer))
    mixer.kernel = kernel
    x, first = torch.randn(37, WIDTH), torch.randn(37, WIDTH)
    with torch.no_grad():
        found = mixer(x[None], Span(0, 37, shared={"rwkv7_first_value": first[None]} if layer else {}), None)[0]
        low_rank = [mixer.decay, mixer.learning_rate, mixer.value or mixer.decay]  # the first layer's is not looked at
        matrices = [
            weight
            for part in low_rank
            for weight in (part.up.bias, part.down.weight.T, part.up.weight.T)
        ]  # fmt: skip
        expected, last, _, _ = theirs.RWKV_x070_TMix_seq(
            layer, WIDTH // SIZE, SIZE, x, torch.zeros(WIDTH), first, torch.zeros(WIDTH // SIZE, SIZE, SIZE),
            *(mixer.mix[i] for i in (0, 1, 2, 3, 4, 5)), *matrices, mixer.gate.down.weight.T, mixer.gate.up.weight.T,
            mixer.removal_scale, mixer.replacement_scale, mixer.bonus.flatten(),
            mixer.r_proj.weight.T, mixer.k_proj.weight.T, mixer.v_proj.weight.T, mixer.o_proj.weight.T,
            mixer.norm.weight, mixer.norm.bias,
        )  # fmt: skip
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(last, x[-1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_channel_mixing(theirs, config):
    layer = randomized(RWKV7ChannelMixing(config, 1))
    x = torch.randn(9, WIDTH)
    with torch.no_grad():
        found, _ = layer(x[None], Span(0, 9), None)
        expected, _ = theirs.RWKV_x070_CMix_seq(
            x, torch.zeros(WIDTH), layer.mix, layer.k_proj.weight.T, layer.v_proj.weight.T
        )
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
