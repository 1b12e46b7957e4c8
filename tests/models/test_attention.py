"""One query at a time, as in decoding: every fused way gives what the equation gives."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from efficientllm.models.attention import attend, single_query_attention
from efficientllm.models.interfaces import Span

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BATCH, HEADS, CACHED, WIDTH = 2, 6, 300, 32


def mask(kind: str, dtype: torch.dtype) -> torch.Tensor | None:
    if kind == "padding":
        visible = torch.ones(BATCH, 1, 1, CACHED, dtype=torch.bool)
        visible[1, ..., :40] = False
        return visible
    return torch.randn(1, HEADS, 1, CACHED).to(dtype) if kind == "bias of each head" else None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("kind", ["none", "padding", "bias of each head"])
@pytest.mark.parametrize("value_width", [WIDTH, 24])
@pytest.mark.parametrize("key_heads", [1, 2, HEADS])
def test_a_single_query(device, kind, value_width, key_heads):
    torch.manual_seed(1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q = torch.randn(BATCH, HEADS, 1, WIDTH).to(dtype)
    k, v = (torch.randn(BATCH, key_heads, CACHED, width).to(dtype) for width in (WIDTH, value_width))
    seen = mask(kind, dtype)

    def span(moved: torch.Tensor | None) -> Span:
        return Span(start=CACHED - 1, length=1, causal=False, attention_mask=moved)

    exact = span(seen.double() if seen is not None and seen.dtype != torch.bool else seen)
    expected = attend(q.double(), k.double(), v.double(), exact, fast=False)
    here = span(None if seen is None else seen.to(device))
    found = attend(q.to(device), k.to(device), v.to(device), here, fast=True).cpu()
    assert found.shape == (BATCH, HEADS, 1, value_width)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.01 if device == "cuda" else 1e-5)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("none", torch.float32),
        ("none", torch.bfloat16),
        ("padding", torch.float32),
        ("bias of each head", torch.bfloat16),
    ],
)
def test_a_single_query_by_products_is_not_replaced_by_a_fused_kernel(kind, dtype):
    torch.manual_seed(1)
    value_width = 24
    q = torch.randn(BATCH, 1, HEADS, WIDTH).to(dtype)
    k, v = (torch.randn(BATCH, 1, CACHED, width).to(dtype) for width in (WIDTH, value_width))
    seen = mask(kind, dtype)
    if kind == "bias of each head":
        seen = seen.view(1, 1, HEADS, CACHED)
    exact = seen.double() if seen is not None and seen.dtype != torch.bool else seen
    doubles = (x.double() for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*doubles, attn_mask=exact, scale=0.2)

    def by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return single_query_attention(q, k, v, seen, 0.2)  # the compiler looks for a constant scale

    torch.compiler.reset()
    counters.clear()
    with inductor_config.patch(force_disable_caches=True):  # a cached program is not looked through again
        compiled = torch.compile(by_products, dynamic=True)(q, k, v)
    for found in (compiled, by_products(q, k, v)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.01 if dtype == torch.bfloat16 else 1e-5)
    assert counters["inductor"]["fuse_attention"] == 0
