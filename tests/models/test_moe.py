"""The mixture of experts drops no token, and its balancing loss is Mixtral's."""

import pytest
import torch
from torch.nn import functional as F

from efficientllm.components.feedforwards.moe import MixtureOfExperts, _has_grouped_kernel
from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.interfaces import Span


def naive(layer: MixtureOfExperts, x_nc: torch.Tensor) -> torch.Tensor:
    """Computes the mixture token by token."""
    rows = []
    for x in x_nc:
        scores, chosen = (layer.router @ x).topk(layer.options.experts_per_token)
        row = torch.zeros_like(x)
        for weight, expert in zip(scores.softmax(dim=-1), chosen.tolist(), strict=True):
            gate, up = (layer.gate_up_proj[expert] @ x).chunk(2)
            row = row + weight * (layer.down_proj[expert] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture
def layer(make_decoder) -> MixtureOfExperts:
    return make_decoder(feedforward="moe").layers[0].feedforward


@pytest.mark.parametrize("skewed", [False, True], ids=["spread", "one expert takes all"])
@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_dropless(make_decoder, skewed, experts_per_token):
    options = {"experts": 5, "experts_per_token": experts_per_token, "load_balancing_weight": 0.0}
    layer = make_decoder(feedforward="moe", feedforward_options=options).layers[0].feedforward
    torch.manual_seed(3)
    x = torch.randn(2, 9, 32)
    if skewed:
        x[..., 0] = 50.0  # expert 3 reads this channel
        with torch.no_grad():
            layer.router[:, 0] = torch.tensor([0.0, 0.1, 0.0, 9.0, 0.0])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, _ = layer(ours, Span(0, 9), None)
    parameters = list(layer.parameters())
    gradients = torch.autograd.grad(found.square().sum(), [ours, *parameters])
    expected = naive(layer, theirs.view(-1, 32))
    reference = torch.autograd.grad(expected.square().sum(), [theirs, *parameters], materialize_grads=True)
    torch.testing.assert_close(found.view(-1, 32), expected, rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_balancing_loss_is_mixtrals(layer, padded):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(4)
    x = torch.randn(3, 8, 32)
    mask = torch.ones(3, 8, dtype=torch.bool)
    if padded:
        mask[1, :5] = False
    scores = F.linear(x.view(-1, 32), layer.router)
    expected = load_balancing_loss_func((scores,), 4, 2, mask.long() if padded else None)
    _, found = layer.train()(x, Span(0, 8, balanced_bt=mask if padded else None), None)
    torch.testing.assert_close(found, 0.02 * expected)


def test_balancing_losses_of_all_layers_are_summed(make_decoder, tokens):
    decoder = make_decoder(feedforward="moe", layers=3).train()
    losses = []
    for block in decoder.layers:
        block.feedforward.register_forward_hook(lambda module, inputs, output: losses.append(output[1]))
    output = decoder(tokens)
    assert len(losses) == 3
    torch.testing.assert_close(output.auxiliary_loss, sum(losses))
    output.auxiliary_loss.backward()
    assert all(float(block.feedforward.router.grad.abs().sum()) > 0 for block in decoder.layers)
    assert decoder.eval()(tokens).auxiliary_loss is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 8, "experts_per_token": 2}, "missing parameter 'feedforward.load_balancing_weight'"),
        ({"experts": 2, "experts_per_token": 3, "load_balancing_weight": 0.1}, "experts_per_token 3 exceeds experts 2"),
        ({"experts": 2, "expert_per_token": 1, "load_balancing_weight": 0.1}, "feedforward.expert"),
    ],
)
def test_options(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(feedforward="moe", feedforward_options=options), device="meta")


def forward_and_gradients(layer: MixtureOfExperts, x: torch.Tensor, span: Span | None = None) -> list[torch.Tensor]:
    """Output, balancing loss and all gradients of a layer in training mode."""
    x = x.detach().clone().requires_grad_()
    found, balance = layer.train()(x, span or Span(0, x.shape[1]), None)
    total = (found.float() * torch.linspace(-1, 1, found.numel(), device=x.device).view_as(found)).sum() + balance
    return [found, balance, *torch.autograd.grad(total, [x, *layer.parameters()])]


@pytest.fixture
def grouped_everywhere(monkeypatch):
    """Lets the grouped product run where it is not preferred: on a CPU, PyTorch's has the same interface."""
    monkeypatch.setattr(MixtureOfExperts, "fast_obstacle", lambda self, device: None)


def idle_expert(layer: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Makes expert 2 the last choice of every token."""
    x[..., 0] = 5.0
    with torch.no_grad():
        layer.router[:, 0] = 0.0
        layer.router[2, 0] = -50.0
    return x


@pytest.mark.usefixtures("grouped_everywhere")
@pytest.mark.parametrize("idle", [False, True], ids=["all work", "an expert rests"])
@pytest.mark.parametrize("autocast", [False, True])
def test_grouped_product_equals_loop(layer, monkeypatch, autocast, idle):
    torch.manual_seed(5)
    x = torch.randn(3, 11, 32)
    if idle:
        x = idle_expert(layer, x)
    results, calls, product = [], [], F.grouped_mm
    monkeypatch.setattr(
        F, "grouped_mm", lambda a, b, *, offs: calls.append((a.dtype, offs.tolist())) or product(a, b, offs=offs)
    )
    for kernel in ("reference", "fast"):
        layer.kernel = kernel
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            results.append(forward_and_gradients(layer, x))
    dtype = torch.bfloat16 if autocast else torch.float32
    assert [called for called, _ in calls] == [dtype, dtype]  # and none by the loop
    ends = calls[0][1]
    assert ends[-1] == 66 and (ends[1] == ends[2]) == idle
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {}
    for expected, found in zip(*results, strict=True):
        assert expected.dtype == found.dtype
        torch.testing.assert_close(found, expected, **tolerance)
    if idle:
        gate_up_gradient = results[1][4]
        assert not gate_up_gradient[2].any() and gate_up_gradient[[0, 1, 3]].any()


@pytest.mark.usefixtures("grouped_everywhere")
@pytest.mark.parametrize("padded", [False, True])
def test_grouped_product_compiles_whole(layer, padded):
    torch.manual_seed(6)
    x = torch.randn(2, 8, 32)
    mask = None
    if padded:
        mask = torch.ones(2, 8, dtype=torch.bool)
        mask[0, :3] = False
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")  # a break in the graph would raise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = forward_and_gradients(layer, x, Span(0, 8, padding_mask_bt=mask))
        ours = x.clone().requires_grad_()
        found, balance = compiled(ours, Span(0, 8, padding_mask_bt=mask), None)
    torch.testing.assert_close(found, expected[0])
    torch.testing.assert_close(balance, expected[1])
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    gradients = torch.autograd.grad((found * weights).sum() + balance, [ours, *layer.parameters()])
    for gradient, expected_gradient in zip(gradients, expected[2:], strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=2e-2, atol=2e-2)


def test_kernel_on_a_cpu(layer):
    cpu = torch.device("cpu")
    assert layer.kernel_description(cpu).startswith("loop over experts (grouped matrix multiplication has kernels for")
    layer.kernel = "fast"
    with pytest.raises(ParameterError, match="kernel 'fast': grouped matrix multiplication has kernels for GPUs alone"):
        layer(torch.randn(1, 4, 32), Span(0, 4), None)


class Properties:
    def __init__(self, major: int) -> None:
        self.major = major


@pytest.mark.parametrize(
    ("major", "dtype", "inner", "obstacle"),
    [
        (9, torch.bfloat16, 48, None),
        (10, torch.bfloat16, 48, None),
        (8, torch.bfloat16, 48, "needs a GPU of compute capability 9 or 10"),
        (12, torch.bfloat16, 48, "needs a GPU of compute capability 9 or 10"),
        (9, torch.float16, 48, "needs bfloat16, not float16"),
        (9, torch.bfloat16, 44, "multiples of 8"),
    ],
)
def test_kernel_on_a_gpu(make_decoder, monkeypatch, major, dtype, inner, obstacle):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties(major))
    layer = make_decoder(feedforward="moe", intermediate_size=inner).layers[0].feedforward
    device = torch.device("cuda")
    found = layer.to(dtype).fast_obstacle(device)
    assert found is None if obstacle is None else obstacle in found
    if obstacle is None:
        assert layer.float().fast_obstacle(device) == "needs bfloat16, not float32"
        # autocast stays off where there is no GPU, so its state is set by hand
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: dtype)
        assert layer.fast_obstacle(device) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("idle", [False, True], ids=["all work", "an expert rests"])
def test_grouped_product_equals_loop_on_a_gpu(layer, idle, compiled):
    device = torch.device("cuda")
    layer.to(device)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        obstacle = layer.fast_obstacle(device)
    if obstacle is not None:
        pytest.skip(obstacle)
    torch.manual_seed(7)
    x = torch.randn(4, 37, 32, device=device)  # slices of any length, aligned to nothing
    if idle:
        x = idle_expert(layer, x)
    results = []
    for kernel in ("reference", "fast"):
        layer.kernel = kernel
        subject = torch.compile(layer, fullgraph=True) if compiled and kernel == "fast" else layer
        with torch.autocast("cuda", dtype=torch.bfloat16):
            forward_and_gradients(subject, x)  # compiles
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if kernel == "fast" else "default")
            try:
                results.append(forward_and_gradients(subject, x))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)


def test_the_mark_of_a_constant_is_pytorchs_own() -> None:
    @torch.compiler.assume_constant_result
    def marked() -> int:
        return 1

    assert vars(_has_grouped_kernel) == vars(marked) != {}
