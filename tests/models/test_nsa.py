"""Native sparse attention against the paper's equations, full attention, its own cache, and its kernels."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from efficientllm.components.mixers.nsa import NativeSparseAttention
from efficientllm.errors import ParameterError
from efficientllm.models import sparse_attention as plain
from efficientllm.models.accounting import cache_bytes_per_token
from efficientllm.models.attention import rotate
from efficientllm.models.build import build_decoder
from efficientllm.models.interfaces import Span
from efficientllm.models.spans import share
from efficientllm.models.sparse_attention import Branches, Memory, SparseLayout, sparse_attention
from tests.models.test_decoder import check_decoding

SMALL: dict[str, Any] = {
    "compression_block": 8, "compression_stride": 4, "selection_block": 8, "selected_blocks": 3, "sliding_window": 11,
}  # fmt: skip
NSA: dict[str, Any] = {"mixer": "nsa", "mixer_options": SMALL}
LAYOUTS = [
    SparseLayout(8, 4, 8, 3, 11),
    SparseLayout(4, 2, 12, 4, 5),
    SparseLayout(6, 6, 6, 3, 200),
    SparseLayout(12, 4, 20, 3, 9),
]
"""Different overlaps of the blocks; the last one's compression block is no power of two strides."""


@pytest.fixture
def mixer(make_config) -> NativeSparseAttention:
    torch.manual_seed(3)
    layer = NativeSparseAttention(make_config(**NSA))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer


def random_inputs(layout: SparseLayout, length: int, heads: int, key_heads: int, width: int) -> list[torch.Tensor]:
    """Queries, and keys and values of the three branches."""
    torch.manual_seed(length)
    blocks = layout.compressed(length)
    sizes = [(length, heads)] + [(n, key_heads) for n in (blocks, blocks, length, length, length, length)]
    return [torch.randn(2, *size, width, requires_grad=True) for size in sizes]


def gradients(branches: Branches, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(9)
    loss = sum((branch * torch.randn(branch.shape).to(branch)).sum() for branch in branches)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def by_equations(inputs: list[torch.Tensor], layout: SparseLayout) -> Branches:
    """The three branches query by query, as the paper writes them, with its indices from 1."""
    q, compressed_k, compressed_v, selected_k, selected_v, sliding_k, sliding_v = inputs
    batch, length, heads, width = q.shape
    groups = heads // selected_k.shape[2]
    block, stride, size = layout.compression_block, layout.compression_stride, layout.selection_block
    outputs: list[list[torch.Tensor]] = [[], [], []]
    for b in range(batch):
        for t in range(1, length + 1):
            rows: list[list[torch.Tensor]] = [[], [], []]
            for group in range(heads // groups):
                members = range(group * groups, (group + 1) * groups)
                seen = [i for i in range(compressed_k.shape[1]) if i * stride + block <= t]
                importance = [0.0] * (math.ceil(t / size) + 1)
                for h in members:
                    weights = (compressed_k[b, seen, group] @ q[b, t - 1, h] / math.sqrt(width)).softmax(0)
                    rows[0].append(weights @ compressed_v[b, seen, group])
                    for j in range(1, len(importance)):  # equations 9 and 10
                        for m in range(size // stride):
                            for n in range(block // stride):
                                i = size // stride * j - m - n
                                if 1 <= i <= len(seen):
                                    importance[j] += float(weights[i - 1].detach())
                last = len(importance) - 1
                forced = {1, last, max(1, last - 1)}
                ranked = sorted(set(range(1, last + 1)) - forced, key=lambda j: -importance[j])
                chosen = forced | set(ranked[: layout.selected_blocks - len(forced)])
                tokens = [s for s in range(t) if s // size + 1 in chosen]
                near = list(range(max(0, t - layout.sliding_window), t))
                for h in members:
                    for branch, (k, v, keys) in enumerate(
                        ((selected_k, selected_v, tokens), (sliding_k, sliding_v, near)), start=1
                    ):
                        weights = (k[b, keys, group] @ q[b, t - 1, h] / math.sqrt(width)).softmax(0)
                        rows[branch].append(weights @ v[b, keys, group])
            for branch in range(3):
                outputs[branch].append(torch.stack(rows[branch]))
    return Branches(*(torch.stack(x).view(batch, length, heads, width) for x in outputs))


@pytest.mark.parametrize(
    ("layout", "length"), [(LAYOUTS[0], 37), (LAYOUTS[1], 41), (LAYOUTS[2], 30), (LAYOUTS[3], 45), (LAYOUTS[0], 5)]
)
def test_branches_follow_the_equations(monkeypatch, layout, length):
    monkeypatch.setattr(plain, "QUERIES_AT_ONCE", 16)
    inputs = random_inputs(layout, length, 4, 2, 8)
    expected = by_equations(inputs, layout)
    found = sparse_attention(inputs[0], Memory(*inputs[1:], 0), torch.arange(length)[None], 0, layout)
    for name, ours, theirs in zip(Branches._fields, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_few_queries_gather_what_many_mask():
    layout = LAYOUTS[0]
    inputs = random_inputs(layout, 61, 4, 2, 8)
    memory, positions = Memory(*inputs[1:], 0), torch.arange(61)[None]
    whole = sparse_attention(inputs[0], memory, positions, 0, layout)
    for t in (0, 25, 60):
        one = sparse_attention(inputs[0][:, t : t + 1], memory, positions[:, t : t + 1], None, layout)
        for ours, theirs in zip(one, whole, strict=True):
            torch.testing.assert_close(ours, theirs[:, t : t + 1], rtol=1e-4, atol=1e-5)


def logistic(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + (-x).exp())


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (i, i + D / 2) of keys or queries `[B, T, H, D]` as complex numbers."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * 10000.0 ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def compressed(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor, layout: SparseLayout) -> torch.Tensor:
    """Equation 7: phi of the blocks that start every d tokens, `[B, N, K, D]`; each head's of its own tokens."""
    block, stride = layout.compression_block, layout.compression_stride
    phi = {key.split(".", 1)[1]: value for key, value in weights.items() if key.startswith(f"{name}_compression")}
    blocks = []
    for first in range(0, x.shape[1] - block + 1, stride):
        marked = [x[:, first + i] + phi["position"][i] for i in range(block)]
        inner = torch.cat(marked, dim=-1) @ phi["inner.weight"].T + phi["inner.bias"]
        blocks.append(inner * logistic(inner) @ phi["outer.weight"].T + phi["outer.bias"])
    return torch.stack(blocks, dim=1)


@pytest.mark.parametrize("position", ["rope", "none"])
def test_the_layer_follows_the_equations(make_config, mixer, position):
    """Equation 5: the sum of the branches in sigmoid gates, whose keys and values are the paper's equations 6 to 12."""
    length, layout = 29, LAYOUTS[0]
    decoder = build_decoder(make_config(**NSA, position=position))
    hidden = torch.randn(2, length, 32, requires_grad=True)
    span = Span(0, length)
    share(span, hidden, decoder.position, mixer)
    found = mixer(hidden, span, None)

    w = dict(mixer.named_parameters())
    q = (hidden @ w["q_proj.weight"].T).view(2, length, 4, 8)
    k, v = ((hidden @ w[f"{x}_proj.weight"].T).view(2, length, 3, 2, 8).unbind(dim=2) for x in "kv")
    compressed_k, compressed_v = compressed(w, "key", k[0], layout), compressed(w, "value", v[0], layout)
    selected_k, sliding_k = k[1], k[2]
    if position == "rope":
        tokens = torch.arange(float(length))
        q, selected_k, sliding_k = (rotated(x, tokens) for x in (q, selected_k, sliding_k))
        last_tokens = layout.compression_stride * torch.arange(compressed_k.shape[1]) + layout.compression_block - 1
        compressed_k = rotated(compressed_k, last_tokens)
    branches = by_equations([q, compressed_k, compressed_v, selected_k, v[1], sliding_k, v[2]], layout)
    logits = (hidden @ w["gate_proj.weight"].T + w["gate_proj.bias"]).view(2, length, 3, 4, 1)
    assert logits.min() < -1 and logits.max() > 2, "gates that a clamp would close or fully open"
    mixed = sum(logistic(logits[:, :, i]) * branch for i, branch in enumerate(branches))
    expected = mixed.flatten(2) @ w["o_proj.weight"].T

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(x, [hidden, *w.values()], upstream) for x in (found, expected))
    for name, gradient, wanted in zip(["hidden", *w], ours, theirs, strict=True):
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def only(layer: NativeSparseAttention, branch: int) -> None:
    """Opens one branch's gates and closes the others'."""
    with torch.no_grad():
        layer.gate_proj.weight.zero_()
        layer.gate_proj.bias.view(3, -1).fill_(-1e4)[branch] = 1e4


@pytest.mark.parametrize("branch", [1, 2])
def test_all_blocks_or_an_endless_window_are_full_attention(make_config, mixer, branch):
    config = make_config(**{**NSA, "mixer_options": {**SMALL, "selected_blocks": 5, "sliding_window": 64}})
    layer = NativeSparseAttention(config)
    layer.load_state_dict(mixer.state_dict())
    only(layer, branch)
    hidden = torch.randn(2, 37, 32, requires_grad=True)
    angles = torch.randn(37, 1, 8)
    rotation = (angles.cos(), angles.sin())
    found = layer(hidden, Span(0, 37, rotation=rotation), None)
    q = rotate(layer.q_proj(hidden).view(2, 37, 4, 8), rotation)
    k = rotate(layer.k_proj(hidden).view(2, 37, 3, 2, 8)[:, :, branch], rotation)
    v = layer.v_proj(hidden).view(2, 37, 3, 2, 8)[:, :, branch]
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    expected = layer.o_proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    wanted = [hidden, layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]
    upstream = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad(x, wanted, upstream) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_compression_starts_as_the_mean(make_config):
    decoder = build_decoder(make_config(**NSA))
    phi = decoder.blocks()[0].mixer.key_compression
    assert float(phi.position.detach().std()) == pytest.approx(0.02, rel=0.3)
    with torch.no_grad():
        phi.position.zero_()
        blocks = 0.1 * torch.randn(2, 3, 8, 2, 8)
        torch.testing.assert_close(phi(blocks), blocks.mean(dim=2), rtol=0.1, atol=1e-3)


def test_decoding_causality_and_padding(make_decoder, tokens):
    check_decoding(make_decoder(**NSA), tokens)
    check_decoding(make_decoder(**NSA, position="none"), tokens)


@pytest.mark.parametrize("cuts", [range(91), [0, 5, 6, 7, 31, 33, 70, 90], [0, 3, 90]], ids=["steps", "odd", "two"])
@torch.no_grad()
def test_long_cached_decoding(make_decoder, cuts):
    decoder, cuts = make_decoder(**NSA), list(cuts)
    ids = torch.randint(61, (2, 90), generator=torch.Generator().manual_seed(4))
    full, cache = decoder(ids).logits, decoder.new_cache(2, 90)
    pieces = [decoder(ids[:, a:b], cache=cache).logits for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=0, atol=1e-4)
    # what no query of the first 40 may see must not matter to them
    changed = ids.clone()
    changed[:, 40:] = 7
    torch.testing.assert_close(decoder(changed).logits[:, :40], full[:, :40], rtol=0, atol=1e-5)


@torch.no_grad()
def test_long_padded_decoding(make_decoder):
    """Blocks count from the first real token, with and without a cache."""
    decoder = make_decoder(**NSA)
    ids = torch.randint(61, (3, 60), generator=torch.Generator().manual_seed(5))
    full, left = decoder(ids).logits, (0, 3, 9)
    padded, mask = torch.full((3, 69), 7), torch.zeros(3, 69, dtype=torch.bool)
    for row, missing in enumerate(left):
        padded[row, missing : missing + 60] = ids[row]
        mask[row, missing : missing + 60] = True
    whole, cache = decoder(padded, padding_mask=mask).logits, decoder.new_cache(3, 69)
    cuts = [0, 2, 12, 13, 40, *range(41, 70)]
    pieces = [decoder(padded[:, a:b], cache=cache, padding_mask=mask[:, a:b]).logits for a, b in pairwise(cuts)]
    for row, missing in enumerate(left):
        for found in (whole, torch.cat(pieces, dim=1)):
            torch.testing.assert_close(found[row, missing : missing + 60], full[row], rtol=0, atol=1e-4)


@torch.no_grad()
def test_cache_reorder_and_take(make_decoder):
    decoder = make_decoder(**NSA)
    ids = torch.randint(61, (3, 40), generator=torch.Generator().manual_seed(6))
    cache = decoder.new_cache(3, 44)
    decoder(ids[:, :37], cache=cache)
    doubled, order = cache.take(torch.tensor([0, 0, 1, 1, 2, 2])), torch.tensor([2, 1, 1])
    full = decoder(ids).logits[:, 37:]
    found = decoder(ids[:, 37:].repeat_interleave(2, 0), cache=doubled).logits
    torch.testing.assert_close(found, full.repeat_interleave(2, 0), rtol=0, atol=1e-4)
    cache.reorder(order)
    torch.testing.assert_close(decoder(ids[order, 37:], cache=cache).logits, full[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes(make_config, dtype):
    config = make_config(**NSA)
    decoder = build_decoder(config, device="meta")
    shorter, longer = (decoder.new_cache(3, length, dtype=dtype).nbytes() for length in (160, 320))
    assert longer - shorter == 3 * 160 * cache_bytes_per_token(config, dtype.itemsize)
    assert cache_bytes_per_token(config, 1) == 2 * 2 * (2 * 8 + 2 * 8 // 4)  # layers, heads, own and compressed


@pytest.mark.parametrize("backward", [False, True])
def test_flops_equal_the_counted(make_config, backward):
    """With all blocks selected and an endless window the plain path multiplies nothing in vain but future keys."""
    length = 24
    layer = NativeSparseAttention(make_config(**{**NSA, "mixer_options": {**SMALL, "sliding_window": 64}}))
    hidden = torch.randn(2, length, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = layer(hidden, Span(0, length), None)
        if backward:
            out.sum().backward()
    blocks = (length - 8) // 4 + 1
    idle = length / 4 - blocks  # the formula counts a block for every stride, also for the first, incomplete one
    phi = 2 * (8 * 8 * 8 + 8 * 8) * 2 * 2
    counted = 2 * (length * layer.flops_per_token(length) - idle * phi)
    assert counter.get_total_flops() == counted * (3 if backward else 1)


def test_flops_follow_what_is_seen(make_config):
    layer = NativeSparseAttention(make_config(**NSA))
    per_key = 4 * 32
    assert layer.flops_per_token(4) - layer.flops_per_token(3) == 2 * per_key  # selected and sliding
    assert layer.flops_per_token(16) - layer.flops_per_token(12) == per_key * (1 + 4)  # past the window of 11
    assert layer.flops_per_token(400) - layer.flops_per_token(200) == per_key * 50  # compressed keys only
    block = SMALL["selection_block"]
    first, whole = (layer.flops_per_token(20 * block + own) for own in (1, block))
    # of its own block a token sees what is up to itself; a compressed key more for each stride
    assert whole - first == per_key * (block - 1) + per_key * (block - 1) / SMALL["compression_stride"]


@pytest.mark.parametrize("length", [3, 17, 40])
def test_all_parameters_learn(make_decoder, length):
    decoder = make_decoder(**NSA)
    decoder(torch.randint(61, (2, length))).logits.square().mean().backward()
    for name, parameter in decoder.named_parameters():
        if length < 8 and "compression" in name:
            assert parameter.grad is None  # no block is complete
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_sixteen_bits_and_autocast(make_decoder):
    decoder = make_decoder(**NSA)
    ids = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(7))
    full = decoder(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(ids).logits
        cache = decoder.new_cache(2, 40)
        cached = torch.cat([decoder(ids[:, :33], cache=cache).logits, decoder(ids[:, 33:], cache=cache).logits], dim=1)
    half = decoder.to(torch.bfloat16)
    for found in (mixed, cached, half(ids).logits):
        assert found.dtype == torch.bfloat16
        assert float(torch.corrcoef(torch.stack([found.float().flatten(), full.flatten()]))[0, 1]) > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"compression_stride": 3},
            "'mixer.compression_block' is 8: it must be a multiple of mixer.compression_stride 3",
        ),
        ({"selection_block": 10}, "'mixer.selection_block' is 10: it must be a multiple"),
        ({"compression_block": 16}, "must not exceed mixer.selection_block 8"),
        ({"selected_blocks": 2}, "mixer.selected_blocks' is 2"),
        ({"sliding_windows": 2}, "did you mean 'mixer.sliding_window'"),
    ],
)
def test_unfit_options(make_config, options, message):
    with pytest.raises(ParameterError, match=message):
        build_decoder(make_config(**{**NSA, "mixer_options": {**SMALL, **options}}))


def test_positional_bias_is_refused(make_decoder, tokens):
    decoder = make_decoder(**NSA, position="relative", position_options={"buckets": 8, "max_distance": 12})
    with pytest.raises(ParameterError, match="'rope' or 'none'"):
        decoder(tokens)


def test_fast_kernels_say_why_they_rest(make_decoder):
    layer = make_decoder(**NSA).blocks()[0].mixer
    assert layer.kernel_description(torch.device("cpu")).endswith("need a CUDA GPU with Triton, and this is a CPU)")
    layer.kernel = "fast"
    with pytest.raises(ParameterError, match="block-sparse Triton kernels need a CUDA GPU"):
        layer.runs_fast(torch.device("cpu"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, triton_device: torch.device) -> torch.device:
    """Where Triton runs, with few programs where that is a CPU."""
    if triton_device.type == "cpu":
        monkeypatch.setattr("efficientllm.models.sparse_kernels.banded._PROGRAMS", 8)
    return triton_device


@pytest.mark.parametrize(
    ("layout", "length", "heads", "key_heads", "width"),
    [
        (LAYOUTS[0], 50, 6, 2, 8), (LAYOUTS[1], 33, 2, 2, 24), (LAYOUTS[3], 70, 3, 1, 16), (LAYOUTS[0], 5, 4, 2, 16),
    ],
)  # fmt: skip
def test_kernels_equal_the_plain_path(monkeypatch, device, layout, length, heads, key_heads, width):
    from efficientllm.models.sparse_kernels import branches, lists

    # several segments per block, and several pieces of importance
    monkeypatch.setattr(lists, "_SEGMENT", 32)
    monkeypatch.setattr(branches, "_IMPORTANCE_ELEMENTS", 1)
    inputs = [x.detach().to(device).requires_grad_() for x in random_inputs(layout, length, heads, key_heads, width)]
    positions = torch.arange(length, device=device)[None]
    expected = sparse_attention(inputs[0], Memory(*inputs[1:], 0), positions, 0, layout)
    found = branches.fast_sparse_attention(inputs[0], Memory(*inputs[1:], 0), layout)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_kernels_in_sixteen_bits(device):
    from efficientllm.models.sparse_kernels.branches import fast_sparse_attention

    layout = SparseLayout(8, 4, 8, 5, 11)  # all blocks: rounding cannot change the choice
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16  # the interpreter multiplies no bfloat16
    inputs = [x.detach().to(device, dtype).requires_grad_() for x in random_inputs(layout, 40, 4, 2, 16)]
    expected = sparse_attention(
        inputs[0].float(), Memory(*(x.float() for x in inputs[1:]), 0), torch.arange(40, device=device)[None], 0, layout
    )
    found = fast_sparse_attention(inputs[0], Memory(*inputs[1:], 0), layout)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=0.03, atol=0.03)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.1)


def test_decoder_through_the_kernels(monkeypatch, device, make_decoder):
    """Whole passes run the kernels, the steps after them the plain path, and both agree."""
    monkeypatch.setattr(NativeSparseAttention, "fast_obstacle", lambda self, device: None)
    decoder = make_decoder(**NSA).to(device)
    ids = torch.randint(61, (1, 43), generator=torch.Generator().manual_seed(8)).to(device)
    results = []
    for kernel in ("reference", "fast"):
        decoder.select_kernel(kernel)
        decoder.zero_grad()
        logits = decoder(ids).logits
        logits.square().mean().backward()
        with torch.no_grad():
            cache = decoder.new_cache(1, 43)
            cached = [decoder(ids[:, a:b], cache=cache).logits for a, b in ((0, 40), (40, 41), (41, 43))]
        torch.testing.assert_close(torch.cat(cached, dim=1), logits, rtol=0, atol=1e-4)
        results.append([logits, *(parameter.grad for parameter in decoder.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_kernels_compile_without_a_break(monkeypatch, device, mixer):
    monkeypatch.setattr(NativeSparseAttention, "fast_obstacle", lambda self, device: None)
    mixer = mixer.to(device)
    hidden = torch.randn(1, 20, 32).to(device)
    expected, found = (
        run(hidden, Span(0, 20), None) for run in (mixer, torch.compile(mixer, fullgraph=True, backend="aot_eager"))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = list(mixer.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(x.square().sum(), weights) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("kilobytes", "dtype", "width", "large", "gathered"),
    [
        (227, torch.bfloat16, 128, False, 32),
        (227, torch.bfloat16, 192, True, 32),
        (99, torch.bfloat16, 64, False, 32),
        (99, torch.bfloat16, 128, True, 16),  # the banded kernel's gradient would take 100 KiB, 1 more than there is
        (99, torch.float32, 64, True, 16),
    ],
)
def test_tiles_fit_a_multiprocessor(monkeypatch, kilobytes, dtype, width, large, gathered):
    pytest.importorskip("triton")
    from efficientllm.models.sparse_kernels import selected, tiles

    monkeypatch.setattr(tiles, "shared_memory", lambda device: kilobytes * 1024)
    q, k = (torch.empty(1, 2, heads, width, dtype=dtype) for heads in (4, 1))
    assert tiles.is_large(q) is large
    assert selected._sizes(q, k, 64, selected._GATHERED_ROWS)["rows"] == gathered
