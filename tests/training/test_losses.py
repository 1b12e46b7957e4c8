"""The chunked loss equals cross-entropy of the logits, gradients included, and never holds them all."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from efficientllm.data.packing import IGNORED
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.training import losses
from efficientllm.training.losses import (
    _LinearCrossEntropy,
    default_chunk,
    linear_cross_entropy,
    mean_loss,
    token_losses,
    training_loss,
)

ROWS, WIDTH, VOCABULARY = 23, 8, 61


def problem(dtype: torch.dtype = torch.float64, ignored: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and labels, some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    labels[torch.randperm(ROWS, generator=generator)[:ignored]] = IGNORED
    return hidden, weight, labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss from all logits at once."""
    return F.cross_entropy(F.linear(hidden, weight).to(torch.promote_types(weight.dtype, torch.float32)), labels)


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("chunk", [None, 1, 7, ROWS, 100])
@pytest.mark.parametrize("ignored", [0, 5, ROWS - 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients(dtype, ignored, chunk):
    hidden, weight, labels = problem(dtype, ignored)
    expected, found = plain(hidden, weight, labels), linear_cross_entropy(hidden, weight, labels, chunk)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    # upstream gradients other than 1, as with accumulated micro-batches
    reference = torch.autograd.grad(expected / 3, [hidden, weight])
    for gradient, expected_gradient in zip(torch.autograd.grad(found / 3, [hidden, weight]), reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("chunk", [None, 7])
def test_ignored_positions_that_cannot_be_dropped(chunk):
    """The computation of labels that lie on a GPU, where the host does not know how many are ignored."""
    hidden, weight, labels = problem()
    expected = plain(hidden, weight, labels)
    found = _LinearCrossEntropy.apply(hidden, weight, labels, chunk or ROWS, True, True, True)
    torch.testing.assert_close(found, expected)
    reference = torch.autograd.grad(expected, [hidden, weight])
    for gradient, expected_gradient in zip(torch.autograd.grad(found, [hidden, weight]), reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("chunk", [None, 7])
def test_no_labels_at_all(chunk):
    hidden, weight, labels = problem(ignored=ROWS)
    expected, found = plain(hidden, weight, labels), linear_cross_entropy(hidden, weight, labels, chunk)
    assert expected.isnan() and found.isnan()
    reference = torch.autograd.grad(expected, [hidden, weight])
    for gradient, expected_gradient in zip(torch.autograd.grad(found, [hidden, weight]), reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("chunk", [None, 7])
def test_bfloat16(chunk):
    hidden, weight, labels = problem(torch.float32)
    exact = plain(hidden, weight, labels)
    reference = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = F.cross_entropy(F.linear(hidden, weight).float(), labels)
        found = linear_cross_entropy(hidden, weight, labels, chunk)
    assert found.dtype == torch.float32 and found != exact
    torch.testing.assert_close(found, rounded)
    usual = torch.autograd.grad(rounded, [hidden, weight])
    for gradient, by_autocast, expected in zip(
        torch.autograd.grad(found, [hidden, weight]), usual, reference, strict=True
    ):
        assert gradient.dtype == torch.float32
        error, usual_error = (float((value - expected).norm() / expected.norm()) for value in (gradient, by_autocast))
        assert 0 < error <= 1.2 * usual_error < 0.02


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_frozen(frozen, chunk):
    hidden, weight, labels = problem()
    still, moving = (weight, hidden) if frozen == "weight" else (hidden, weight)
    still.requires_grad_(False)
    expected = torch.autograd.grad(plain(hidden, weight, labels), moving)
    linear_cross_entropy(hidden, weight, labels, chunk).backward()
    assert still.grad is None
    torch.testing.assert_close(moving.grad, expected[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context, monkeypatch):
    hidden, weight, labels = problem(ignored=0)
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **kwargs: products.append(args) or mm(*args, **kwargs))
    expected = plain(hidden, weight, labels)
    with context():
        found = linear_cross_entropy(hidden, weight, labels, 7)
    assert not found.requires_grad and not products
    torch.testing.assert_close(found, expected.detach())
    linear_cross_entropy(hidden, weight, labels, 7)
    assert len(products) == 4  # so the count above would have seen them


def test_gradients_cannot_be_read_twice():
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_tensor_holds_all_logits():
    hidden, weight, labels = problem(ignored=0)
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, labels, 4).backward()
    assert largest.elements == weight.numel() > 4 * VOCABULARY
    with Largest() as largest:
        plain(hidden, weight, labels).backward()
    assert largest.elements == ROWS * VOCABULARY


def test_chunk_by_default():
    assert default_chunk(151_936) == 1766  # 1766 x 151936 x 4 bytes is the most below 1 GiB
    assert default_chunk(1 << 40) == 1


def decoder_of(tied: bool, **changes: Any) -> Decoder:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocabulary_size": VOCABULARY, "hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2,
        "intermediate_size": 48, "context_length": 32, "tie_embeddings": tied, "block": "pre_norm", "mixer": "gqa",
        "position": "rope", "feedforward": "moe", "mixer_options": {}, "position_options": {},
        "feedforward_options": {"experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.02},
    }  # fmt: skip
    return build_decoder(DecoderConfig(**{**fields, **changes})).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.randint(VOCABULARY, (3, 18), generator=torch.Generator().manual_seed(2))
    labels = window[:, 1:].clone()
    labels[:, :6] = IGNORED  # a prompt
    return window[:, :-1], labels


class AdaptedHead(nn.Linear):
    """A head that is more than its matrix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.5


@pytest.mark.parametrize("head", ["tied", "untied", "adapted", "biased"])
def test_training_loss(head, monkeypatch):
    decoder = decoder_of(head == "tied")
    if head == "adapted":
        decoder.lm_head = AdaptedHead(32, VOCABULARY, bias=False)
    elif head == "biased":
        decoder.lm_head = nn.Linear(32, VOCABULARY)
        nn.init.normal_(decoder.lm_head.bias)
    inputs, labels = batch()
    output = decoder(inputs)
    expected = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    (expected + output.auxiliary_loss).backward()
    reference = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    projected = []
    monkeypatch.setattr(
        decoder, "project", lambda hidden, project=decoder.project: projected.append(1) or project(hidden)
    )
    loss, cross_entropy = training_loss(decoder, inputs, labels)
    assert bool(projected) == (head in ("adapted", "biased"))
    torch.testing.assert_close(cross_entropy, expected.detach())
    torch.testing.assert_close(loss, (expected + output.auxiliary_loss).detach())
    assert not cross_entropy.requires_grad
    loss.backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], msg=lambda text, name=name: f"{name}: {text}")


def test_low_rank_adapters_with_a_frozen_head():
    from peft import LoraConfig, get_peft_model

    from efficientllm.models.transformers_adapter import EfficientLLMConfig, EfficientLLMForCausalLM

    config = decoder_of(False, feedforward="swiglu", feedforward_options={}).config
    model = get_peft_model(
        EfficientLLMForCausalLM(EfficientLLMConfig(**config.to_dict())),
        LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    )
    decoder, (inputs, labels) = model.base_model.model.decoder, batch()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert type(decoder.lm_head) is not nn.Linear
    expected = F.cross_entropy(decoder(inputs).logits.flatten(0, 1), labels.flatten())
    found, _ = training_loss(decoder, inputs, labels)
    torch.testing.assert_close(found, expected)
    reference = torch.autograd.grad(expected, trained)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, trained), reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@torch.no_grad()
def test_held_out_batches_count_by_their_tokens():
    decoder, (inputs, labels) = decoder_of(True).eval(), batch()
    ignored = labels.clone()
    ignored[:, :-2] = IGNORED  # so that batches differ in how many tokens they predict
    losses = token_losses(decoder(inputs).logits, labels)
    kept = labels != IGNORED
    expected = (losses.sum() + losses[:, -2:].sum()) / (kept.sum() + kept[:, -2:].sum())
    found = mean_loss(decoder, iter([(inputs, labels), (inputs, ignored)]))
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("labels_on", ["cpu", "cuda"])
def test_on_a_gpu(labels_on):
    torch.manual_seed(0)
    hidden = torch.randn(1000, 64, device="cuda", requires_grad=True)
    weight = torch.randn(3000, 64, device="cuda", requires_grad=True)
    labels = torch.randint(3000, (1000,))
    labels[:300] = IGNORED
    expected = F.cross_entropy(F.linear(hidden, weight), labels.cuda())
    reference = torch.autograd.grad(expected, [hidden, weight])
    found = linear_cross_entropy(hidden, weight, labels.to(labels_on), 256)
    torch.testing.assert_close(found, expected)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, [hidden, weight]), reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-6)
    if labels_on == "cuda":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            linear_cross_entropy(hidden, weight, labels.cuda(), 256).backward()  # compiles
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                linear_cross_entropy(hidden, weight, labels.cuda(non_blocking=True), 256).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_batches_of_any_length_share_two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    compiled = torch.compile(losses._elementwise, backend=counter)
    monkeypatch.setattr(losses, "_elementwise_on", lambda device_type: compiled)
    generator = torch.Generator().manual_seed(0)
    weight_vc = torch.randn(11, 6, generator=generator).requires_grad_()
    for count in (3 * 8 + 5, 2 * 8 + 3, 7, 4 * 8, 8 + 6):
        hidden_nc = torch.randn(count, 6, generator=generator).requires_grad_()
        labels_n = torch.randint(0, 11, (count,), generator=generator)
        loss = losses.linear_cross_entropy(hidden_nc, weight_vc, labels_n, chunk=8)
        expected = F.cross_entropy(hidden_nc @ weight_vc.T, labels_n)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(
            torch.autograd.grad(loss, hidden_nc)[0], torch.autograd.grad(expected, hidden_nc)[0], atol=1e-6
        )
    assert counter.frame_count == 2, "one for whole chunks, one for the last of each batch"
