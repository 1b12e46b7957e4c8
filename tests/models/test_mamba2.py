"""Mamba-2 equals Transformers' Mamba-2 layer, and its chunked form its recurrence."""

import pytest
import torch

from efficientllm.errors import CellFailure, ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.components import component
from efficientllm.models.interfaces import Span
from efficientllm.models.state_space import chunked_scan, recurrent_scan, recurrent_step
from tests.models.conftest import config_of

OPTIONS = {"expand": 2, "head_dim": 16, "state_size": 8, "groups": 2, "chunk": 8}
NAMES = {
    "in_proj.weight": "in_proj.weight", "convolution": "conv1d.weight", "convolution_bias": "conv1d.bias",
    "step_bias": "dt_bias", "log_decay_rate": "A_log", "skip": "D", "norm.weight": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}  # fmt: skip


def inputs(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [
        normal(2, length, 4, 8), -3 * normal(2, length, 4).abs(), normal(2, length, 2, 6), normal(2, length, 2, 6),
        normal(2, 4, 8, 6),
    ]  # fmt: skip
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("length", [1, 5, 16, 37])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
def test_chunks_equal_the_recurrence(length, chunk):
    given = inputs(length)
    outputs = [recurrent_scan(*given), chunked_scan(*given, chunk=chunk)]
    weights = [torch.randn_like(tensor) for tensor in outputs[0]]
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, weights, strict=True)), given) for found in outputs
    ]
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_step_is_a_token_of_the_recurrence():
    x, log_decay, b, c, state = (tensor.detach() for tensor in inputs(1))
    outputs, last = recurrent_scan(x, log_decay, b, c, state)
    output, after = recurrent_step(x[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], state)
    torch.testing.assert_close(output, outputs[:, 0])
    torch.testing.assert_close(after, last)


def test_strong_decay_stays_finite():
    given = inputs(64)
    log_decay = torch.full((2, 64, 4), -30.0, requires_grad=True)
    given[1] = log_decay
    out, last = chunked_scan(*given, chunk=64)
    gradients = torch.autograd.grad(out.sum() + last.sum(), given)
    assert all(torch.isfinite(tensor).all() for tensor in (out, last, *gradients))


@pytest.mark.parametrize("kernel", ["reference", "fast"])
@pytest.mark.parametrize("length", [1, 8, 21])
@pytest.mark.parametrize("groups", [1, 2])
def test_parity_with_transformers(make_config, kernel, length, groups):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    ours = component("mixer", "mamba2")(
        make_config(mixer="mamba2", position="none", mixer_options={**OPTIONS, "groups": groups})
    )
    ours.kernel = kernel
    settings = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=groups, chunk_size=8, expand=2,
        num_hidden_layers=1, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    theirs = Mamba2Mixer(settings, 0)
    reference = dict(theirs.named_parameters())
    assert {NAMES[name] for name, _ in ours.named_parameters()} == set(reference)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4)
            reference[NAMES[name]].copy_(parameter.view_as(reference[NAMES[name]]))
    x = torch.randn(3, length, 32, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, expected = ours(x, Span(0, length), None), theirs(y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        gradient = reference[NAMES[name]].grad.view_as(parameter)
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=2e-5, msg=name)


def test_initial_decays_and_steps(make_config):
    torch.manual_seed(0)
    options = {"head_dim": 1, "state_size": 4}
    config = make_config(hidden_size=256, mixer="mamba2", position="none", mixer_options=options)
    mixer = build_decoder(config).blocks()[0].mixer
    rate, step = mixer.log_decay_rate.detach().exp(), torch.nn.functional.softplus(mixer.step_bias.detach())
    assert 1 <= float(rate.min()) < 2 < 15 < float(rate.max()) <= 16
    assert 1e-3 <= float(step.min()) < 2e-3 < 5e-2 < float(step.max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_dim": 24}, "inner width 64 is not a multiple"), ({"groups": 3, "head_dim": 16}, "4 heads are not")],
)
def test_unfit_shapes(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(mixer="mamba2", position="none", mixer_options=options))


def test_a_compiler_that_breaks_it_is_refused() -> None:
    """torch 2.13's program for a CPU corrupts the memory of the process."""
    config = config_of(mixer="mamba2", position="none", mixer_options=OPTIONS)
    with pytest.raises(CellFailure, match=r"cannot compile Mamba2 for a CPU: set training\.compile to none"):
        build_decoder(config).compile_blocks()
