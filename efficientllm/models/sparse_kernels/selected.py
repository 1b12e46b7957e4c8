"""Attention over the blocks that each query chose."""

import math
from typing import Any

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.models.sparse_kernels.lists import queries_by_block, shared_blocks
from efficientllm.models.sparse_kernels.tiles import (
    LOG2_E,
    fake_attention,
    fake_gradient,
    is_large,
    is_small,
    key_step,
    load_rows,
    power_of_two,
    save_for_backward,
    softmax_step,
    strides,
    unit_stride,
)

_TILE_ROWS = 16
"""Rows of one program of the selected branch: as many neighbouring queries as fit share the blocks that any chose."""
_GATHERED_ROWS = 32
"""Rows, of queries anywhere, that a program of the keys' gradient takes at a time."""


@triton.jit
def _selected_forward(
    q, k, v, lists, members, counts, out, log_sum, length, keys, heads, listed, scale,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    groups: tl.constexpr, queries: tl.constexpr, size: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    key_heads = heads // groups
    batch, shared = (tl.program_id(1) // key_heads).to(tl.int64), tl.program_id(1) % key_heads
    row, d, n = tl.arange(0, rows), tl.arange(0, padded), tl.arange(0, columns)
    query = row // groups
    t, head = tl.program_id(0) * queries + query, shared * groups + row % groups
    inside = (query < queries) & (t < length)
    q_mask = inside[:, None] & (d < width)[None, :]
    q_tile = tl.load(q + batch * q_b + (t * q_t + head * q_h)[:, None] + d[None, :], mask=q_mask, other=0.0)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, padded], tl.float32)
    entry = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    for index in range(tl.load(counts + entry)):
        j = tl.load(lists + entry * listed + index) * size + n
        chosen = (tl.load(members + entry * listed + index) >> query) & 1
        real = (n < size) & (j < keys)
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, real, d, width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, real, d, width, False)
        visible = (chosen == 1)[:, None] & (j[None, :] <= t[:, None]) & real[None, :]
        scores = tl.where(visible, tl.dot(q_tile, k_tile, input_precision="ieee") * scale, float("-inf"))
        highest, total, mixed = softmax_step(scores, highest, total, mixed, v_tile)
    some = total > 0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    address = out + batch * o_b + (t * o_t + head * o_h)[:, None] + d[None, :]
    tl.store(address, mixed.to(out.dtype.element_ty), mask=q_mask)
    base = tl.where(some, highest + tl.log2(tl.where(some, total, 1.0)), float("inf"))
    tl.store(log_sum + (batch * length + t) * heads + head, base, mask=inside)


@triton.jit
def _selected_query_gradient(
    q, k, v, lists, members, counts, gradient, log_sum, inner, q_gradient, length, keys, heads, listed, scale,
    natural_scale, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    groups: tl.constexpr, queries: tl.constexpr, size: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    key_heads = heads // groups
    batch, shared = (tl.program_id(1) // key_heads).to(tl.int64), tl.program_id(1) % key_heads
    row, d, n = tl.arange(0, rows), tl.arange(0, padded), tl.arange(0, columns)
    query = row // groups
    t, head = tl.program_id(0) * queries + query, shared * groups + row % groups
    inside = (query < queries) & (t < length)
    q_mask = inside[:, None] & (d < width)[None, :]
    q_tile = tl.load(q + batch * q_b + (t * q_t + head * q_h)[:, None] + d[None, :], mask=q_mask, other=0.0)
    place = batch * o_b + (t * o_t + head * o_h)[:, None] + d[None, :]
    upstream = tl.load(gradient + place, mask=q_mask, other=0.0)
    base = tl.load(log_sum + (batch * length + t) * heads + head, mask=inside, other=float("inf"))
    own = tl.load(inner + (batch * length + t) * heads + head, mask=inside, other=0.0)
    found = tl.zeros([rows, padded], tl.float32)
    entry = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    for index in range(tl.load(counts + entry)):
        j = tl.load(lists + entry * listed + index) * size + n
        chosen = (tl.load(members + entry * listed + index) >> query) & 1
        real = (n < size) & (j < keys)
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, real, d, width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, real, d, width, True)
        visible = (chosen == 1)[:, None] & (j[None, :] <= t[:, None]) & real[None, :]
        scores = tl.dot(q_tile, k_tile, input_precision="ieee") * scale
        weights = tl.exp2(tl.where(visible, scores - base[:, None], float("-inf")))
        change = weights * (tl.dot(upstream, v_tile, input_precision="ieee") - own[:, None])
        found += tl.dot(change.to(k_tile.dtype), tl.trans(k_tile), input_precision="ieee")
    tl.store(q_gradient + place, (found * natural_scale).to(q_gradient.dtype.element_ty), mask=q_mask)


@triton.jit
def _selected_key_gradient(
    q, k, v, pairs, segment_block, segment_first, segment_last, gradient, log_sum, inner, k_parts, v_parts,
    length, keys, heads, pairs_per_head, scale, natural_scale,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    groups: tl.constexpr, queries: tl.constexpr, size: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    key_heads = heads // groups
    batch, shared = (tl.program_id(1) // key_heads).to(tl.int64), tl.program_id(1) % key_heads
    segment = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    first, last = tl.load(segment_first + segment), tl.load(segment_last + segment)
    if first < last:
        row, d, n = tl.arange(0, rows), tl.arange(0, padded), tl.arange(0, columns)
        slot, head = row // groups, shared * groups + row % groups
        j = tl.load(segment_block + segment) * size + n
        real = (n < size) & (j < keys)
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, real, d, width, False)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, real, d, width, False)
        k_found = tl.zeros([columns, padded], tl.float32)
        v_found = tl.zeros([columns, padded], tl.float32)
        chosen_by = pairs + tl.program_id(1).to(tl.int64) * pairs_per_head
        for start in range(first, last, queries):
            inside = (slot < queries) & (start + slot < last)
            t = tl.load(chosen_by + start + slot, mask=inside, other=0)
            mask = inside[:, None] & (d < width)[None, :]
            q_tile = tl.load(q + batch * q_b + (t * q_t + head * q_h)[:, None] + d[None, :], mask=mask, other=0.0)
            place = batch * o_b + (t * o_t + head * o_h)[:, None] + d[None, :]
            upstream = tl.load(gradient + place, mask=mask, other=0.0)
            base = tl.load(log_sum + (batch * length + t) * heads + head, mask=inside, other=float("inf"))
            own = tl.load(inner + (batch * length + t) * heads + head, mask=inside, other=0.0)
            visible = inside[None, :] & (j[:, None] <= t[None, :]) & real[:, None]
            k_found, v_found = key_step(q_tile, upstream, base, own, k_tile, v_tile, visible, scale, k_found, v_found)
        place = (segment * size + n)[:, None] * width + d[None, :]
        mask = (n < size)[:, None] & (d < width)[None, :]
        tl.store(k_parts + place, k_found * natural_scale, mask=mask)
        tl.store(v_parts + place, v_found, mask=mask)


@triton.jit
def _sum_segments(
    k_parts, v_parts, block_segments, k_gradient, v_gradient, keys, segments, o_b, o_t, o_h, key_heads,
    size: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    batch, shared = (tl.program_id(1) // key_heads).to(tl.int64), tl.program_id(1) % key_heads
    n, d = tl.arange(0, columns), tl.arange(0, padded)
    j = tl.program_id(0) * size + n
    mask = (n < size)[:, None] & (d < width)[None, :]
    k_found = tl.zeros([columns, padded], tl.float32)
    v_found = tl.zeros([columns, padded], tl.float32)
    bounds = block_segments + tl.program_id(1) * (tl.num_programs(0) + 1) + tl.program_id(0)
    for segment in range(tl.load(bounds), tl.load(bounds + 1)):
        part = tl.program_id(1).to(tl.int64) * segments + segment
        place = (part * size + n)[:, None] * width + d[None, :]
        k_found += tl.load(k_parts + place, mask=mask, other=0.0)
        v_found += tl.load(v_parts + place, mask=mask, other=0.0)
    place = batch * o_b + shared * o_h + j[:, None] * o_t + d[None, :]
    mask = mask & (j < keys)[:, None]
    tl.store(k_gradient + place, k_found.to(k_gradient.dtype.element_ty), mask=mask)
    tl.store(v_gradient + place, v_found.to(v_gradient.dtype.element_ty), mask=mask)


def selected_attention(
    q_bthd: torch.Tensor, k_bskd: torch.Tensor, v_bskd: torch.Tensor, blocks_bktr: torch.Tensor, block_size: int
) -> torch.Tensor:
    """Attends causally to the tokens of chosen blocks.

    Args:
        q_bthd: Queries of all positions.
        k_bskd: Keys.
        v_bskd: Values.
        blocks_bktr: Each query's blocks, different ones or -1, int32.
        block_size: Tokens of a block.

    Returns:
        Output `[B, T, H, D]`.
    """
    count = -(-k_bskd.shape[1] // block_size)
    queries = _queries(q_bthd, k_bskd, _TILE_ROWS)
    # outside the operators, so that a compiler fuses what makes the lists
    by_tile, by_block = shared_blocks(blocks_bktr, queries, count), queries_by_block(blocks_bktr, count)
    out: torch.Tensor = _selected(q_bthd, k_bskd, v_bskd, *by_tile, *by_block, block_size)[0]
    return out


@torch.library.custom_op("efficientllm::selected_attention", mutates_args=())
def _selected(
    q_bthd: torch.Tensor,
    k_bskd: torch.Tensor,
    v_bskd: torch.Tensor,
    lists: torch.Tensor,
    members: torch.Tensor,
    counts: torch.Tensor,
    pairs: torch.Tensor,
    block_segments: torch.Tensor,
    segment_block: torch.Tensor,
    segment_first: torch.Tensor,
    segment_last: torch.Tensor,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    del pairs, block_segments, segment_block, segment_first, segment_last  # for the gradient
    q, k, v = (unit_stride(x) for x in (q_bthd, k_bskd, v_bskd))
    batch, length, heads, width = q.shape
    sizes = _sizes(q, k, block_size, _TILE_ROWS)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    log_sum = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _selected_forward[(counts.shape[2], batch * k.shape[2])](
        q, k, v, lists, members, counts, out, log_sum, length, k.shape[1], heads, lists.shape[-1],
        LOG2_E / math.sqrt(width), *strides(q, k, v, out), **sizes,
    )  # fmt: skip
    return out, log_sum


@torch.library.custom_op("efficientllm::selected_attention_gradient", mutates_args=())
def _selected_gradient(
    gradient: torch.Tensor,
    q_bthd: torch.Tensor,
    k_bskd: torch.Tensor,
    v_bskd: torch.Tensor,
    lists: torch.Tensor,
    members: torch.Tensor,
    counts: torch.Tensor,
    pairs: torch.Tensor,
    block_segments: torch.Tensor,
    segment_block: torch.Tensor,
    segment_first: torch.Tensor,
    segment_last: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (unit_stride(x) for x in (q_bthd, k_bskd, v_bskd))
    gradient = gradient.contiguous()
    batch, length, heads, width = q.shape
    keys, key_heads = k.shape[1:3]
    inner = (gradient.float() * out.float()).sum(dim=-1)
    sizes = _sizes(q, k, block_size, _TILE_ROWS)
    q_gradient = torch.empty_like(out)
    scales = (LOG2_E / math.sqrt(width), 1 / math.sqrt(width))
    _selected_query_gradient[(counts.shape[2], batch * key_heads)](
        q, k, v, lists, members, counts, gradient, log_sum, inner, q_gradient, length, keys, heads, lists.shape[-1],
        *scales, *strides(q, k, v, out), **sizes,
    )  # fmt: skip

    segments, count = segment_block.shape[1], block_segments.shape[1] - 1
    k_parts = torch.empty(batch * key_heads, segments, block_size, width, dtype=torch.float32, device=q.device)
    v_parts = torch.empty_like(k_parts)
    sizes = _sizes(q, k, block_size, _GATHERED_ROWS)
    _selected_key_gradient[(segments, batch * key_heads)](
        q, k, v, pairs, segment_block, segment_first, segment_last, gradient, log_sum, inner, k_parts, v_parts,
        length, keys, heads, pairs.shape[1], *scales, *strides(q, k, v, out), **sizes,
    )  # fmt: skip
    k_gradient = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    v_gradient = torch.empty_like(k_gradient)
    _sum_segments[(count, batch * key_heads)](
        k_parts, v_parts, block_segments, k_gradient, v_gradient, keys, segments, *k_gradient.stride()[:3], key_heads,
        **{name: sizes[name] for name in ("size", "width", "padded", "columns")},
    )  # fmt: skip
    return q_gradient, k_gradient, v_gradient


def _queries(q: torch.Tensor, k: torch.Tensor, rows: int) -> int:
    """Queries, each with a group of heads, of a tile of about `rows` rows."""
    return min(16, max(1, rows * k.shape[2] // q.shape[2]))


def _sizes(q: torch.Tensor, k: torch.Tensor, block_size: int, rows: int) -> dict[str, Any]:
    """Sizes of a tile of about `rows` rows."""
    width, groups, large = q.shape[-1], q.shape[2] // k.shape[2], is_large(q)
    if large and is_small(q.device):
        rows = _TILE_ROWS
    queries = _queries(q, k, rows)
    return {
        "groups": groups, "queries": queries, "size": block_size, "width": width, "padded": power_of_two(width),
        "rows": power_of_two(queries * groups), "columns": power_of_two(block_size),
        "num_warps": 4, "num_stages": 1 if large else 2,
    }  # fmt: skip


def _selected_backward(ctx: Any, gradient: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    del unused
    return (*_selected_gradient(gradient, *ctx.saved_tensors, *ctx.numbers), *[None] * 9)


_selected.register_autograd(_selected_backward, setup_context=save_for_backward)
_selected.register_fake(fake_attention)
_selected_gradient.register_fake(fake_gradient)
