"""Attention of one query for each head in a single launch, whose keys are split among a GPU's multiprocessors.

Flash decoding (Dao et al. 2023): each program takes the queries of a group of heads and a part of their keys, and keeps its sum
without dividing it. The program that finishes last for a group puts the parts together, so that no second kernel has to be
waited for.
"""

import functools

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.device import has_dependent_launch
from efficientllm.models.sparse_kernels.tiles import (
    LOG2_E,
    load_rows,
    power_of_two,
    shared_memory,
    softmax_step,
    unit_stride,
)

_MOST_TILE_KEYS = 128
_MOST_PARTS = 32


@triton.jit
def _combine(
    mixed_parts, sums, out, head, parts,
    groups: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, few: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    g, d = tl.arange(0, few), tl.arange(0, padded)
    real, first = g < groups, head * parts
    stored = real[:, None] & (d < width)[None, :]
    # loads go past the multiprocessor's own cache, which does not see what others have stored
    top = tl.full([few], float("-inf"), tl.float32)
    for part in tl.static_range(most):
        peaks = sums + (first + part) * 2 * groups + g
        top = tl.maximum(top, tl.load(peaks, mask=real & (part < parts), other=float("-inf"), cache_modifier=".cg"))
    top = tl.where(real, top, 0.0)
    total = tl.zeros([few], tl.float32)
    mixed = tl.zeros([few, padded], tl.float32)
    for part in tl.static_range(most):
        peaks = sums + (first + part) * 2 * groups + g
        there = real & (part < parts)
        weight = tl.exp2(tl.load(peaks, mask=there, other=float("-inf"), cache_modifier=".cg") - top)
        total += weight * tl.load(peaks + groups, mask=there, other=0.0, cache_modifier=".cg")
        tile = mixed_parts + ((first + part) * groups + g)[:, None] * width + d[None, :]
        mixed += weight[:, None] * tl.load(tile, mask=stored & (part < parts), other=0.0, cache_modifier=".cg")
    tl.store(out + (head * groups + g)[:, None] * width + d[None, :], mixed / total[:, None], mask=stored)


@triton.jit(do_not_specialize=["keys", "parts", "share"])  # which change from token to token
def _attend(
    q, k, v, out, mixed_parts, sums, finished, keys, parts, share, key_heads, scale,
    q_b, q_h, q_g, k_b, k_h, k_t, v_b, v_h, v_t,
    groups: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    most: tl.constexpr, few: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    batch, shared = (head // key_heads).to(tl.int64), head % key_heads
    row, d, n = tl.arange(0, rows), tl.arange(0, padded), tl.arange(0, columns)
    if early:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q_tile = load_rows(q + batch * q_b + shared * q_h, row, q_g, row < groups, d, width, False)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, padded], tl.float32)
    end = tl.minimum(keys, (part + 1) * share)
    for index in range(part * share, end, columns):
        j = index + n
        real = j < end
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, real, d, width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, real, d, width, False)
        scores = tl.where(real[None, :], tl.dot(q_tile, k_tile, input_precision="ieee") * scale, float("-inf"))
        highest, total, mixed = softmax_step(scores, highest, total, mixed, v_tile)
    stored = (row < groups)[:, None] & (d < width)[None, :]
    if most == 1:
        place = (head * groups + row)[:, None] * width + d[None, :]
        tl.store(out + place, mixed / total[:, None], mask=stored)
    else:
        entry = head * parts + part
        tl.store(mixed_parts + (entry * groups + row)[:, None] * width + d[None, :], mixed, mask=stored)
        tl.store(sums + entry * 2 * groups + row, highest, mask=row < groups)
        tl.store(sums + (entry * 2 + 1) * groups + row, total, mask=row < groups)
        tl.debug_barrier()  # all of this program's parts are stored before it is counted
        if tl.atomic_add(finished + head, 1, sem="acq_rel") == parts - 1:
            _combine(mixed_parts, sums, out, head, parts, groups, width, padded, few, most)
            tl.store(finished + head, 0)  # for the next call


def split_attention(q_bkgd: torch.Tensor, k_bksd: torch.Tensor, v_bksd: torch.Tensor, scale: float) -> torch.Tensor:
    """Computes softmax(scale Q K^T) V for one query of each head; without gradients, and on one stream at a time.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bksd: Values, of the keys' width.
        scale: Factor of the scores.

    Returns:
        Attention output `[B, K, G, D]`, contiguous.
    """
    batch, key_heads, groups, width = q_bkgd.shape
    heads, keys = batch * key_heads, k_bksd.shape[2]
    q, k, v = (unit_stride(x) for x in (q_bkgd, k_bksd, v_bksd))
    rows, padded = power_of_two(groups), power_of_two(width)
    columns = tile_keys(rows, padded, q.element_size(), shared_memory(q.device))
    share, parts = split(heads, keys, columns, _programs(q.device))
    most = 1 if parts == 1 else int(triton.next_power_of_2(_most_parts(heads, _programs(q.device))))
    few = int(triton.next_power_of_2(groups))
    early = has_dependent_launch(q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    mixed_parts = torch.empty(heads * parts * groups * width, dtype=torch.float32, device=q.device)
    sums = torch.empty(heads * parts * 2 * groups, dtype=torch.float32, device=q.device)
    _attend[(parts, heads)](
        q, k, v, out, mixed_parts, sums, _finished(q.device), keys, parts, share, key_heads, scale * LOG2_E,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        groups=groups, width=width, padded=padded, rows=rows, columns=columns, most=most,
        few=few, early=early, num_warps=4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out


def tile_keys(rows: int, width: int, bytes_of_number: int, room: int) -> int:
    """Keys of a tile: as many as leave room for two of keys and two of values, and for what the products need besides."""
    keys = _MOST_TILE_KEYS
    while keys > 16 and (4 * keys + 6 * rows) * width * bytes_of_number > room:
        keys //= 2
    return keys


def split(heads: int, keys: int, columns: int, programs: int) -> tuple[int, int]:
    """Keys of a part, a multiple of a tile's, and the number of parts, which together fill a device."""
    share = -(-keys // _most_parts(heads, programs))
    share = -(-share // columns) * columns
    return share, -(-keys // share)


def _most_parts(heads: int, programs: int) -> int:
    return max(1, min(_MOST_PARTS, programs // heads))


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 16
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _finished(device: torch.device) -> torch.Tensor:
    """How many parts of each group are done; zero between calls. There are never more groups that are taken apart."""
    return torch.zeros(_programs(device), dtype=torch.int32, device=device)
