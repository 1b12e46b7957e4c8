"""Attention of one query for each head, with either kernel."""

import pytest
import torch
from torch.nn import functional as F

from efficientllm.models import decoding_attention as module
from efficientllm.models.decoding_attention import decoding_attention, takes_own_kernel

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def drawn(device: str, sequences: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of two groups of three heads, and keys and values that are a part of a longer cache, as in decoding."""
    generator = torch.Generator().manual_seed(5)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q = torch.randn(sequences, 2, 3, 64, generator=generator).to(device, dtype)
    cache = torch.randn(2, sequences, 2, keys + 7, 64, generator=generator).to(device, dtype)
    return q, cache[0, :, :, :keys], cache[1, :, :, :keys]


def masks(device: str, sequences: int, keys: int) -> dict[str, torch.Tensor | None]:
    """None, one for all heads that hides keys, and one for each head that is added."""
    generator = torch.Generator().manual_seed(6)
    numbers = torch.randn(sequences, 2, 3, keys, generator=generator).to(device)
    visible = numbers[:, :1, :1] > 0
    visible[..., -1] = True
    return {"no": None, "hides": visible, "adds": numbers[:1].to(torch.bfloat16 if device == "cuda" else torch.float32)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", ["no", "hides", "adds"])
@pytest.mark.parametrize("value_width", [64, 48])
@pytest.mark.parametrize(("sequences", "keys"), [(2, 40), (2, 2047), (80, 1030)])
def test_equals_the_equation(device, scale, mask, value_width, sequences, keys):
    q, k, v = drawn(device, sequences, keys)
    v, chosen = v[..., :value_width], masks(device, sequences, keys)[mask]
    out = decoding_attention(q, k, v, chosen, scale)
    scores = q.float() @ k.float().transpose(-1, -2) * (scale or 64**-0.5)
    if chosen is not None:
        scores = scores.masked_fill(~chosen, -torch.inf) if chosen.dtype == torch.bool else scores + chosen.float()
    expected = scores.softmax(dim=-1) @ v.float()
    assert out.is_contiguous()
    torch.testing.assert_close(out.float(), expected, **({"atol": 2e-2, "rtol": 2e-2} if device == "cuda" else {}))


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_compiler_is_told_is_so(device):
    for mask in masks(device, 2, 40).values():
        q, k, v = drawn(device, 2, 40)
        torch.library.opcheck(decoding_attention, (q, k, v[..., :48], mask, 0.3))
    torch.library.opcheck(decoding_attention, (*drawn(device, 2, 2047), None, None))


@pytest.mark.parametrize("device", DEVICES)
def test_one_program_serves_all_lengths(device):
    compiled = torch.compile(lambda q, k, v: decoding_attention(q, k, v, None, None) + 1, dynamic=True, fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for keys in (900, 1100, 1500):
            q, k, v = drawn(device, 2, keys)
            out = compiled(q, k, v) - 1
            tolerance = {"atol": 3e-2, "rtol": 3e-2} if device == "cuda" else {}
            torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), **tolerance)


@pytest.mark.parametrize("installed", [False, True])
def test_compiled_code_goes_on_where_it_asks_for_the_kernel(monkeypatch, installed):
    monkeypatch.setattr(module, "_HAS_TRITON", installed)

    def asked(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if module.has_own_kernel(torch.device("cuda"), 4, 64) else x

    torch._dynamo.reset()
    found = torch.compile(asked, fullgraph=True, backend="eager")(torch.zeros(2))
    assert torch.equal(found, torch.full((2,), float(installed)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("sequences", "grouped", "own"), [(2, True, True), (2, False, True), (600, True, True), (600, False, False)]
)
def test_own_kernel_is_taken_but_for_many_heads_that_share_no_keys(monkeypatch, sequences, grouped, own):
    q, k, v = drawn("cuda", sequences, 40)
    if not grouped:
        q = q[:, :, :1]
    assert takes_own_kernel(q, v, None) is own
    assert takes_own_kernel(q, v[..., :48], None) and takes_own_kernel(q, v, masks("cuda", sequences, 40)["hides"])
    kernels = names_of_kernels(q, k, v)
    assert any("_attend" in name for name in kernels) is own
    monkeypatch.setattr(module, "_HAS_TRITON", False)
    assert not any("_attend" in name for name in names_of_kernels(q, k, v))


def names_of_kernels(*inputs: torch.Tensor) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        decoding_attention(*inputs, None, None)
        torch.cuda.synchronize()
    return [event.name for event in profile.events()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_calls_follow_one_another_in_any_number():
    """A call leaves nothing behind that the next one would count."""
    q, k, v = drawn("cuda", 2, 2047)
    expected = decoding_attention(q, k, v, None, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [decoding_attention(q, k, v, None, None) for _ in range(5)]
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, expected) for one in found)
