"""Logits and gradients equal those of Transformers' Llama and Mixtral, and of PyTorch's own RMSNorm."""

import pytest
import torch
from torch.nn import functional as F

from efficientllm.errors import ParameterError
from efficientllm.models.export import to_transformers, transformers_name
from efficientllm.models.norms import RMSNorm
from efficientllm.models.weights import cast_weights


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("mixer", "feedforward"), [("gqa", "swiglu"), ("mqa", "swiglu"), ("mha", "swiglu"), ("gqa", "moe"), ("mqa", "moe")]
)
def test_logits_and_gradients(make_decoder, tokens, mixer, feedforward, tie_embeddings):
    decoder = make_decoder(mixer=mixer, feedforward=feedforward, tie_embeddings=tie_embeddings)
    model = to_transformers(decoder)
    ours, theirs = decoder(tokens).logits, model(tokens).logits
    assert float((ours - theirs).abs().max()) <= 1e-4
    for logits in (ours, theirs):
        F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    reference = dict(model.named_parameters())
    names = {transformers_name(name) for name, _ in decoder.named_parameters()}
    assert names == set(reference)
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[transformers_name(name)].grad, rtol=1e-3, atol=1e-5)


def test_rope_base_is_exported(make_decoder, tokens):
    decoder = make_decoder(position_options={"base": 500.0})
    torch.testing.assert_close(decoder(tokens).logits, to_transformers(decoder)(tokens).logits, rtol=0, atol=1e-4)
    assert not torch.allclose(decoder(tokens).logits, make_decoder()(tokens).logits, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_models_differ_no_more_from_float32_than_theirs(make_decoder, dtype):
    decoder = make_decoder(context_length=1024)
    for name, parameter in decoder.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data.mul_(3)  # else attention hardly depends on positions
    far = torch.randint(decoder.config.vocabulary_size, (1, 1024))
    exact = decoder(far).logits
    cast_weights(decoder, dtype)

    def error(logits):
        return float((logits - exact).norm() / exact.norm())

    ours, theirs = error(decoder(far).logits), error(to_transformers(decoder)(far).logits)
    assert 0.5 * theirs < ours < 1.5 * theirs


@pytest.mark.parametrize("change", [{"position": "learned"}, {"position": "none"}])
def test_export_without_counterpart(make_decoder, change):
    with pytest.raises(ParameterError, match="has no equal in Transformers"):
        to_transformers(make_decoder(**change))


@pytest.mark.parametrize("frozen", [False, True])
def test_norm_equals_pytorch(frozen):
    torch.manual_seed(0)
    norm = RMSNorm(24)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
    norm.weight.requires_grad_(not frozen)
    x = (3 * torch.randn(2, 5, 24) + 1).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weight = norm.weight.detach().clone().requires_grad_()
    upstream = torch.randn(2, 5, 24)
    ours, theirs = norm(x), F.rms_norm(y, (24,), weight, 1e-6)
    torch.testing.assert_close(ours, theirs)
    ours.backward(upstream)
    theirs.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    if frozen:
        assert norm.weight.grad is None
    else:
        torch.testing.assert_close(norm.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)
