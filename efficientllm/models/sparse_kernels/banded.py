"""Attention over keys at regular distances, of one token or of several each, at any distance or within a window."""

import math
from typing import Any

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.models.sparse_kernels.tiles import (
    LOG2_E,
    fake_attention,
    fake_gradient,
    is_large,
    key_step,
    load_rows,
    power_of_two,
    save_for_backward,
    softmax_step,
    strides,
    unit_stride,
)

_PROGRAMS = 512
"""Programs that fill a GPU."""


@triton.jit
def _in_band(t, j, keys, stride: tl.constexpr, span: tl.constexpr, window: tl.constexpr):
    """Whether queries t see keys j, which stand for `span` tokens every `stride` tokens and end within the window."""
    end = j * stride + span - 1
    visible = (end <= t) & (j < keys)
    if window > 0:
        visible = visible & (end > t - window)
    return visible


@triton.jit
def _band(first_row, rows, length, keys, stride: tl.constexpr, span: tl.constexpr, window: tl.constexpr):
    """First key that any of these queries sees, and the one behind the last."""
    last = tl.minimum(keys, (tl.minimum(first_row + rows, length) - span + stride) // stride)
    first = 0
    if window > 0:
        first = tl.maximum(0, first_row - window + 2 - span) // stride
    return first, last


@triton.jit
def _banded_forward(
    q, k, v, out, log_sum, length, keys, heads, groups, scale,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    stride: tl.constexpr, span: tl.constexpr, window: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    shared = head // groups
    t = tile * rows + tl.arange(0, rows)
    d = tl.arange(0, padded)
    q_tile = load_rows(q + batch * q_b + head * q_h, t, q_t, t < length, d, width, False)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, padded], tl.float32)
    first, last = _band(tile * rows, rows, length, keys, stride, span, window)
    for start in range(first, last, columns):
        j = start + tl.arange(0, columns)
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, j < keys, d, width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, j < keys, d, width, False)
        scores = tl.dot(q_tile, k_tile, input_precision="ieee") * scale
        visible = _in_band(t[:, None], j[None, :], keys, stride, span, window)
        scores = tl.where(visible, scores, float("-inf"))
        highest, total, mixed = softmax_step(scores, highest, total, mixed, v_tile)
    some = total > 0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    inside = t < length
    address = out + batch * o_b + head * o_h + t[:, None] * o_t + d[None, :]
    tl.store(address, mixed.to(out.dtype.element_ty), mask=inside[:, None] & (d < width)[None, :])
    base = tl.where(some, highest + tl.log2(tl.where(some, total, 1.0)), float("inf"))
    tl.store(log_sum + (batch * length + t) * heads + head, base, mask=inside)


@triton.jit
def _banded_query_gradient(
    q, k, v, gradient, log_sum, inner, q_gradient, length, keys, heads, groups, scale, natural_scale,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    stride: tl.constexpr, span: tl.constexpr, window: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    shared = head // groups
    t = tile * rows + tl.arange(0, rows)
    d = tl.arange(0, padded)
    inside = t < length
    q_tile = load_rows(q + batch * q_b + head * q_h, t, q_t, inside, d, width, False)
    upstream = load_rows(gradient + batch * o_b + head * o_h, t, o_t, inside, d, width, False)
    base = tl.load(log_sum + (batch * length + t) * heads + head, mask=inside, other=float("inf"))
    own = tl.load(inner + (batch * length + t) * heads + head, mask=inside, other=0.0)
    found = tl.zeros([rows, padded], tl.float32)
    first, last = _band(tile * rows, rows, length, keys, stride, span, window)
    for start in range(first, last, columns):
        j = start + tl.arange(0, columns)
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, j < keys, d, width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, j < keys, d, width, True)
        scores = tl.dot(q_tile, k_tile, input_precision="ieee") * scale
        visible = _in_band(t[:, None], j[None, :], keys, stride, span, window)
        weights = tl.exp2(tl.where(visible, scores - base[:, None], float("-inf")))
        change = weights * (tl.dot(upstream, v_tile, input_precision="ieee") - own[:, None])
        found += tl.dot(change.to(k_tile.dtype), tl.trans(k_tile), input_precision="ieee")
    address = q_gradient + batch * o_b + head * o_h + t[:, None] * o_t + d[None, :]
    found = (found * natural_scale).to(q_gradient.dtype.element_ty)
    tl.store(address, found, mask=inside[:, None] & (d < width)[None, :])


@triton.jit
def _banded_key_gradient(
    q, k, v, gradient, log_sum, inner, k_parts, v_parts, length, keys, heads, groups, scale, natural_scale,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    stride: tl.constexpr, span: tl.constexpr, window: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    key_heads = heads // groups
    batch, shared = (tl.program_id(1) // key_heads).to(tl.int64), tl.program_id(1) % key_heads
    start = tl.program_id(0) * columns
    j = start + tl.arange(0, columns)
    d = tl.arange(0, padded)
    k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, j < keys, d, width, False)
    v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, j < keys, d, width, False)
    k_found = tl.zeros([columns, padded], tl.float32)
    v_found = tl.zeros([columns, padded], tl.float32)
    first = (start * stride + span - 1) // rows * rows
    behind = length
    if window > 0:
        behind = tl.minimum(length, (start + columns - 1) * stride + span - 1 + window)
    tiles = tl.maximum(0, tl.cdiv(behind - first, rows))
    share = tl.cdiv(tiles * groups, tl.num_programs(2))
    begin = tl.program_id(2) * share
    for step in range(begin, tl.minimum(begin + share, tiles * groups)):
        head = shared * groups + step // tiles
        t = first + step % tiles * rows + tl.arange(0, rows)
        inside = t < length
        q_tile = load_rows(q + batch * q_b + head * q_h, t, q_t, inside, d, width, False)
        upstream = load_rows(gradient + batch * o_b + head * o_h, t, o_t, inside, d, width, False)
        base = tl.load(log_sum + (batch * length + t) * heads + head, mask=inside, other=float("inf"))
        own = tl.load(inner + (batch * length + t) * heads + head, mask=inside, other=0.0)
        visible = _in_band(t[None, :], j[:, None], keys, stride, span, window)
        k_found, v_found = key_step(q_tile, upstream, base, own, k_tile, v_tile, visible, scale, k_found, v_found)
    part = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    place = (part * keys + j[:, None]) * width + d[None, :]
    mask = (j < keys)[:, None] & (d < width)[None, :]
    tl.store(k_parts + place, k_found * natural_scale, mask=mask)
    tl.store(v_parts + place, v_found, mask=mask)


@triton.jit
def _group_weights(
    q, k, log_sum, weights, first, length, keys, heads, groups, scale, q_b, q_t, q_h, k_b, k_t, k_h, s_b, s_t,
    stride: tl.constexpr, span: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    key_heads = heads // groups
    batch, shared = (tl.program_id(2) // key_heads).to(tl.int64), tl.program_id(2) % key_heads
    t = tl.program_id(0) * rows + tl.arange(0, rows)
    j = tl.program_id(1) * columns + tl.arange(0, columns)
    d = tl.arange(0, padded)
    inside = t < length
    visible = _in_band(first + t[:, None], j[None, :], keys, stride, span, 0)
    found = tl.zeros([rows, columns], tl.float32)
    if tl.program_id(1) * columns * stride + span - 1 < first + (tl.program_id(0) + 1) * rows:
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, j < keys, d, width, True)
        for member in range(groups):
            head = shared * groups + member
            q_tile = load_rows(q + batch * q_b + head * q_h, t, q_t, inside, d, width, False)
            base = tl.load(log_sum + batch * s_b + t * s_t + head, mask=inside, other=float("inf"))
            scores = tl.dot(q_tile, k_tile, input_precision="ieee") * scale
            found += tl.exp2(tl.where(visible, scores - base[:, None], float("-inf")))
    row = tl.program_id(2).to(tl.int64) * length + t
    tl.store(weights + row[:, None] * keys + j[None, :], found, mask=inside[:, None] & (j < keys)[None, :])


@torch.library.custom_op("efficientllm::banded_attention", mutates_args=())
def banded_attention(
    q_bthd: torch.Tensor, k_bnkd: torch.Tensor, v_bnkd: torch.Tensor, stride: int, span: int, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends to keys that stand for `span` tokens each, every `stride` tokens, and end at the query or before.

    Args:
        q_bthd: Queries of all positions.
        k_bnkd: Keys; entry j ends at position j stride + span - 1.
        v_bnkd: Values.
        stride: Tokens from key to key.
        span: Tokens of a key.
        window: Latest positions at which a key may end; 0 for all.

    Returns:
        Output `[B, T, H, D]`, zero for a query without keys, and the base-2 logarithm of the sum of exponentials
        `[B, T, H]`, which has no gradient.
    """
    q, k, v = (unit_stride(x) for x in (q_bthd, k_bnkd, v_bnkd))
    batch, length, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    log_sum = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    sizes = _banded_sizes(q, by_query=True)
    grid = (triton.cdiv(length, sizes["rows"]), batch * heads)
    _banded_forward[grid](
        q, k, v, out, log_sum, length, k.shape[1], heads, heads // k.shape[2], LOG2_E / math.sqrt(width),
        *strides(q, k, v, out), stride=stride, span=span, window=window, **sizes,
    )  # fmt: skip
    return out, log_sum


@torch.library.custom_op("efficientllm::banded_attention_gradient", mutates_args=())
def _banded_gradient(
    gradient: torch.Tensor,
    q_bthd: torch.Tensor,
    k_bnkd: torch.Tensor,
    v_bnkd: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    stride: int,
    span: int,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (unit_stride(x) for x in (q_bthd, k_bnkd, v_bnkd))
    gradient = gradient.contiguous()
    batch, length, heads, width = q.shape
    keys, key_heads = k.shape[1:3]
    inner = (gradient.float() * out.float()).sum(dim=-1)
    q_gradient = torch.empty_like(out)
    sizes = _banded_sizes(q, by_query=True)
    shared = (length, keys, heads, heads // key_heads, LOG2_E / math.sqrt(width), 1 / math.sqrt(width))
    layout = {"stride": stride, "span": span, "window": window}
    grid = (triton.cdiv(length, sizes["rows"]), batch * heads)
    _banded_query_gradient[grid](
        q, k, v, gradient, log_sum, inner, q_gradient, *shared, *strides(q, k, v, out), **layout, **sizes
    )
    sizes = _banded_sizes(q)
    tiles = triton.cdiv(keys, sizes["columns"])
    splits = max(1, min(32, _PROGRAMS // (tiles * batch * key_heads)))
    k_parts = torch.empty(splits, batch, key_heads, keys, width, dtype=torch.float32, device=q.device)
    v_parts = torch.empty_like(k_parts)
    _banded_key_gradient[(tiles, batch * key_heads, splits)](
        q, k, v, gradient, log_sum, inner, k_parts, v_parts, *shared, *strides(q, k, v, out), **layout, **sizes
    )
    k_gradient, v_gradient = (x.sum(dim=0).transpose(1, 2).to(k.dtype).contiguous() for x in (k_parts, v_parts))
    return q_gradient, k_gradient, v_gradient


@torch.library.custom_op("efficientllm::group_weights", mutates_args=())
def group_weights(
    q_bthd: torch.Tensor, k_bnkd: torch.Tensor, log_sum_bth: torch.Tensor, stride: int, span: int, first: int
) -> torch.Tensor:
    """Returns the weights of `banded_attention` summed over the heads of a group, `[B, K, T, N]`, float32.

    Args:
        q_bthd: Some of the queries.
        k_bnkd: Keys.
        log_sum_bth: What `banded_attention` returned for these queries.
        stride: Tokens from key to key.
        span: Tokens of a key.
        first: Position of the first of these queries.
    """
    q, k = unit_stride(q_bthd), unit_stride(k_bnkd)
    log_sum = unit_stride(log_sum_bth)
    batch, length, heads, width = q.shape
    keys, key_heads = k.shape[1:3]
    weights = torch.empty(batch, key_heads, length, keys, dtype=torch.float32, device=q.device)
    sizes = _banded_sizes(q)
    grid = (triton.cdiv(length, sizes["rows"]), triton.cdiv(keys, sizes["columns"]), batch * key_heads)
    _group_weights[grid](
        q, k, log_sum, weights, first, length, keys, heads, heads // key_heads, LOG2_E / math.sqrt(width),
        *q.stride()[:3], *k.stride()[:3], *log_sum.stride()[:2], stride=stride, span=span, **sizes,
    )  # fmt: skip
    return weights


def _banded_sizes(q: torch.Tensor, *, by_query: bool = False) -> dict[str, Any]:
    """Tile sizes of the banded kernels; those of which each program owns queries may take more of them."""
    width, tile = q.shape[-1], 32 if is_large(q) else 64
    doubled = by_query and not is_large(q)
    return {
        "width": width, "padded": power_of_two(width), "rows": 2 * tile if doubled else tile, "columns": tile,
        "num_warps": 8 if doubled else 4, "num_stages": 2,
    }  # fmt: skip


def _banded_backward(ctx: Any, gradient: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    del unused
    return (*_banded_gradient(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None)


banded_attention.register_autograd(_banded_backward, setup_context=save_for_backward)
banded_attention.register_fake(fake_attention)
_banded_gradient.register_fake(fake_gradient)


@group_weights.register_fake
def _fake_weights(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
    del rest
    return q.new_empty(q.shape[0], k.shape[2], q.shape[1], k.shape[1], dtype=torch.float32)
