"""Attention of one query for each head in a single launch, whose keys are split among a GPU's multiprocessors.

Flash decoding (Dao et al. 2023): each program takes the queries of a group of heads and a part of their keys, and keeps its sum
without dividing it. The program that finishes last for a group puts the parts together, so that no second kernel has to be
waited for.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.device import has_dependent_launch
from efficientllm.models.sparse_kernels.tiles import (
    LOG2_E,
    after_earlier_kernels,
    finished_parts,
    load_rows,
    multiprocessors,
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
    q, k, v, mask, out, mixed_parts, sums, finished, keys, parts, share, key_heads, scale,
    q_b, q_h, q_g, k_b, k_h, k_t, v_b, v_h, v_t, m_b, m_h, m_g, m_t,
    groups: tl.constexpr, key_width: tl.constexpr, key_padded: tl.constexpr, width: tl.constexpr, padded: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, most: tl.constexpr, few: tl.constexpr,
    hidden: tl.constexpr, biased: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    batch, shared = (head // key_heads).to(tl.int64), head % key_heads
    row, d, n = tl.arange(0, rows), tl.arange(0, padded), tl.arange(0, columns)
    key_d = tl.arange(0, key_padded)
    after_earlier_kernels(early)
    q_tile = load_rows(q + batch * q_b + shared * q_h, row, q_g, row < groups, key_d, key_width, False)
    highest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, padded], tl.float32)
    end = tl.minimum(keys, (part + 1) * share)
    for index in range(part * share, end, columns):
        j = index + n
        real = j < end
        k_tile = load_rows(k + batch * k_b + shared * k_h, j, k_t, real, key_d, key_width, True)
        v_tile = load_rows(v + batch * v_b + shared * v_h, j, v_t, real, d, width, False)
        scores = tl.dot(q_tile, k_tile, input_precision="ieee") * scale
        visible = real[None, :]
        if hidden or biased:
            address = mask + batch * m_b + shared * m_h + row[:, None] * m_g + j[None, :] * m_t
            inside = (row < groups)[:, None] & visible
            if hidden:
                visible = inside & (tl.load(address, mask=inside, other=0) != 0)
            else:
                scores += tl.load(address, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634  # log2(e)
        scores = tl.where(visible, scores, float("-inf"))
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


def split_attention(
    q_bkgd: torch.Tensor,
    k_bksd: torch.Tensor,
    v_bkse: torch.Tensor,
    mask_bkgs: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Computes softmax(scale Q K^T + mask) V for one query of each head; without gradients, on one stream at a time.

    Args:
        q_bkgd: Queries, the G heads of a group in the place of a sequence.
        k_bksd: Keys.
        v_bkse: Values, whose width E may differ from that of the keys.
        mask_bkgs: True where a key is seen, or what is added to the scores; any dimension may be 1; None for neither.
        scale: Factor of the scores.

    Returns:
        Attention output `[B, K, G, E]`, contiguous.
    """
    batch, key_heads, groups, key_width = q_bkgd.shape
    heads, keys, width = batch * key_heads, k_bksd.shape[2], v_bkse.shape[3]
    q, k, v = (unit_stride(x) for x in (q_bkgd, k_bksd, v_bkse))
    rows, key_padded, padded = power_of_two(groups), power_of_two(key_width), power_of_two(width)
    columns = tile_keys(rows, key_padded, padded, q.element_size(), shared_memory(q.device))
    programs = multiprocessors(q.device)
    share, parts = split(heads, keys, columns, programs)
    most = 1 if parts == 1 else int(triton.next_power_of_2(_most_parts(heads, programs)))
    few = int(triton.next_power_of_2(groups))
    early = has_dependent_launch(q.device)
    out = torch.empty(batch, key_heads, groups, width, dtype=q.dtype, device=q.device)
    mixed_parts = torch.empty(heads * parts * groups * width, dtype=torch.float32, device=q.device)
    sums = torch.empty(heads * parts * 2 * groups, dtype=torch.float32, device=q.device)
    mask, hidden = q, False
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask_bkgs is not None:
        hidden = mask_bkgs.dtype == torch.bool
        mask = mask_bkgs.view(torch.int8) if hidden else mask_bkgs
        mask_strides = mask.expand(batch, key_heads, groups, keys).stride()
    _attend[(parts, heads)](
        q, k, v, mask, out, mixed_parts, sums, finished_parts(q.device, programs), keys, parts, share, key_heads, scale * LOG2_E,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_strides,
        groups=groups, key_width=key_width, key_padded=key_padded, width=width, padded=padded, rows=rows,
        columns=columns, most=most, few=few, hidden=hidden, biased=mask_bkgs is not None and not hidden, early=early,
        num_warps=8 if rows * padded >= 4096 else 4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out


def tile_keys(rows: int, key_width: int, width: int, bytes_of_number: int, room: int) -> int:
    """Keys of a tile: as many as leave room for two of keys and two of values, and for what the products need besides."""
    keys = _MOST_TILE_KEYS
    while keys > 16 and (2 * keys + 3 * rows) * (key_width + width) * bytes_of_number > room:
        keys //= 2
    return keys


def split(heads: int, keys: int, columns: int, programs: int) -> tuple[int, int]:
    """How keys are taken apart, so that together all heads' parts fill a device.

    Args:
        heads: Groups of heads, each of which attends to as many keys.
        keys: Their number.
        columns: Keys of a tile.
        programs: Programs that fill the device.

    Returns:
        Keys of a part, a multiple of a tile, and the number of parts.
    """
    share = -(-keys // _most_parts(heads, programs))
    share = -(-share // columns) * columns
    return share, -(-keys // share)


def _most_parts(heads: int, programs: int) -> int:
    """Parts at most, whatever the number of keys: the kernel is compiled for it."""
    return max(1, min(_MOST_PARTS, programs // heads))
