"""The chunked loss equals PyTorch's on whole logits, gradients included, and holds no whole logits."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from efficientllm.data.packing import IGNORED
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.training import losses
from efficientllm.training.linear_cross_entropy import linear_cross_entropy


def given(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 8, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 8, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(50, (37,), generator=generator)
    labels[::5] = IGNORED
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [None, 1, 8, 37, 100])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_loss_and_gradients(chunk, factor):
    hidden, weight, labels = given()
    expected = F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORED)
    reference = torch.autograd.grad(expected * factor, (hidden, weight))
    found = linear_cross_entropy(hidden, weight, labels, ignored=IGNORED, chunk=chunk)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found * factor, (hidden, weight)), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_frozen_head_and_no_gradients():
    hidden, weight, labels = given()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels, ignored=IGNORED, chunk=10).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, labels, ignored=IGNORED).grad_fn is None


def test_without_any_label_it_is_no_number():
    hidden, weight, _ = given()
    labels = torch.full((37,), IGNORED)
    assert linear_cross_entropy(hidden, weight, labels, ignored=IGNORED).isnan()
    assert F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORED).isnan()


def test_autocast_computes_in_sixteen_bits():
    hidden, weight, labels = given()
    exact = linear_cross_entropy(hidden, weight, labels, ignored=IGNORED)
    exact_gradients = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, labels, ignored=IGNORED, chunk=10)
    gradients = torch.autograd.grad(found, (hidden, weight))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=2e-3)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_no_whole_logits():
    hidden, weight, labels = given()
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, labels, ignored=IGNORED, chunk=4).backward()
    assert largest.size == weight.numel() < len(hidden) * len(weight)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoders_loss_is_the_same_either_way(monkeypatch, tied):
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=61, hidden_size=32, layers=1, heads=4, key_value_heads=2, intermediate_size=48,
        context_length=64, tie_embeddings=tied, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={},
    )  # fmt: skip
    decoder = build_decoder(config)
    tokens = torch.randint(61, (3, 18))
    results = []
    for limit in (0, 2**26):
        monkeypatch.setattr(losses, "_WHOLE_LOGITS_BYTES", limit)
        loss, _ = losses.training_loss(decoder, tokens[:, :-1], tokens[:, 1:])
        results.append([loss, *torch.autograd.grad(loss, list(decoder.parameters()))])
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-6)
