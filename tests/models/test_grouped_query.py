"""One query for each head of a group, with either kernel."""

import pytest
import torch
from torch.nn import functional as F

from efficientllm.models.grouped_query import grouped_query, splits_keys

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def drawn(device: str, sequences: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of two groups of three heads, and keys and values that are a part of a longer cache, as in decoding."""
    generator = torch.Generator().manual_seed(5)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q = torch.randn(sequences, 2, 3, 64, generator=generator).to(device, dtype)
    cache = torch.randn(2, sequences, 2, keys + 7, 64, generator=generator).to(device, dtype)
    return q, cache[0, :, :, :keys], cache[1, :, :, :keys]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("sequences", "keys"), [(2, 40), (2, 2047), (80, 1030)])
def test_equals_the_equation(device, scale, sequences, keys):
    q, k, v = drawn(device, sequences, keys)
    out = grouped_query(q, k, v, scale)
    weights = (q.float() @ k.float().transpose(-1, -2) * (scale or 64**-0.5)).softmax(dim=-1)
    expected = weights @ v.float()
    assert out.is_contiguous()
    torch.testing.assert_close(out.float(), expected, **({"atol": 2e-2, "rtol": 2e-2} if device == "cuda" else {}))


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_compiler_is_told_is_so(device):
    torch.library.opcheck(grouped_query, (*drawn(device, 2, 40), 0.3))
    torch.library.opcheck(grouped_query, (*drawn(device, 2, 2047), None))


@pytest.mark.parametrize("device", DEVICES)
def test_one_program_serves_all_lengths(device):
    compiled = torch.compile(lambda q, k, v: grouped_query(q, k, v, None) + 1, dynamic=True, fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for keys in (900, 1100, 1500):
            q, k, v = drawn(device, 2, keys)
            out = compiled(q, k, v) - 1
            tolerance = {"atol": 3e-2, "rtol": 3e-2} if device == "cuda" else {}
            torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), **tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("sequences", "keys", "expected"), [(2, 2047, True), (2, 500, False), (80, 2047, False)])
def test_keys_are_split_where_heads_do_not_fill_the_device(sequences, keys, expected):
    q, k, v = drawn("cuda", sequences, keys)
    assert splits_keys(q, keys) is expected
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        grouped_query(q, k, v, None)
        torch.cuda.synchronize()
    assert any("splitkv" in event.name for event in profile.events()) is expected
