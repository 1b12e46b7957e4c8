"""Products of a few rows with a matrix of 4-bit weights in one launch, by tensor cores.

Each program writes tiles of some of the matrix' rows out in 16 bits, in registers, and multiplies them by all rows of x. The
columns are split among programs too, or a matrix of few rows would leave most of a GPU idle, and one of many rows some of its
multiprocessors at the end; the program that finishes last for its rows adds the parts up.
"""

import functools
from typing import NamedTuple

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.device import has_dependent_launch
from efficientllm.models.sparse_kernels.tiles import (
    after_earlier_kernels,
    finished_parts,
    multiprocessors,
    power_of_two,
    unit_stride,
)
from efficientllm.serving.packed_matrix_vector_kernels import load_packed

_MOST_PARTS = 16
_GROUPS = 4096  # of the counters, which all but the largest matrices share


class _Times(NamedTuple):
    """What a product's time is made of, in microseconds on an H200.

    Args:
        rows: Up to how many rows of x.
        programs: Programs for which a multiprocessor has registers.
        part: Each part's sums, written and read again.
        tile: A tile, where a multiprocessor has one program, several, and all that it has registers for.
    """

    rows: int
    programs: int
    part: float
    tile: tuple[float, float, float]


# docs/log.md has the times that these are fitted to
_TIMES = (
    _Times(rows=16, programs=4, part=0.05, tile=(1.09, 0.69, 0.58)),
    _Times(rows=64, programs=3, part=0.22, tile=(1.12, 0.77, 0.77)),
)


@functools.cache
def best_parts(groups: int, tiles: int, processors: int, batch: int) -> int:
    """Parts into which each group's tiles are split, so that the multiprocessor with most to do is done soonest.

    Args:
        groups: Programs for one part of the columns.
        tiles: A group's tiles.
        processors: Multiprocessors.
        batch: Rows of x, at most 64.
    """
    times = next(times for times in _TIMES if batch <= times.rows)
    alone, several, full = times.tile

    def duration(parts: int) -> float:
        share = -(-tiles // parts)
        most = -(-groups * -(-tiles // share) // processors)
        tile = alone if most == 1 else full if most >= times.programs else several
        return times.part * parts + most * share * tile

    return min(range(1, min(_MOST_PARTS, tiles) + 1), key=duration)


@triton.jit
def _look_up(tile, levels, shape: tl.constexpr, numbers: tl.constexpr):
    """Each word's eight levels, which stay with the thread that has the word. A byte's first weight is in its upper half."""
    halves = tl.join(tile, tile >> 16)
    pairs = tl.join(halves, halves >> 8)
    level = tl.join(pairs >> 4, pairs) & 15
    return tl.reshape(tl.gather(levels, tl.reshape(level, [numbers]), 0), shape)


@triton.jit
def _store(sums, bias, out, row, m, batch, count, biased: tl.constexpr):
    if biased:
        sums += tl.load(bias + row, mask=row < count, other=0.0).to(tl.float32)[:, None]
    inside = (row < count)[:, None] & (m < batch)[None, :]
    tl.store(out + m[None, :] * count + row[:, None], sums, mask=inside)


@triton.jit
def _products(
    x, packed, absmax, absmax_8bit, code, offset, levels, bias, out, partial, finished, batch, count, x_b, share,
    width: tl.constexpr, block_size: tl.constexpr, rows: tl.constexpr, tile_blocks: tl.constexpr, batch_rows: tl.constexpr,
    parts: tl.constexpr, nested: tl.constexpr, biased: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    group, piece = tl.program_id(0), tl.program_id(1)
    words: tl.constexpr = block_size // 8
    blocks: tl.constexpr = width // block_size
    columns: tl.constexpr = tile_blocks * block_size
    row, b = group * rows + tl.arange(0, rows), tl.arange(0, tile_blocks)
    column, m = tl.arange(0, columns), tl.arange(0, batch_rows)
    first, end = piece * share, tl.minimum((piece + 1) * share, blocks)
    tile, scale = load_packed(
        packed, absmax, absmax_8bit, code, offset, row, first + b, count, end, blocks, words, nested
    )
    table = tl.load(levels + tl.arange(0, 16))
    after_earlier_kernels(early)
    sums = tl.zeros([rows, batch_rows], tl.float32)
    for k in range(first, end, tile_blocks):
        # the next tile is on its way while this one is multiplied
        next_tile, next_scale = load_packed(
            packed, absmax, absmax_8bit, code, offset, row, k + tile_blocks + b, count, end, blocks, words, nested
        )
        weight = _look_up(tile, table, [rows, tile_blocks, words, 8], rows * columns) * scale[:, :, None, None]
        place = k * block_size + column
        there = (place < end * block_size)[:, None] & (m < batch)[None, :]
        x_tile = tl.load(x + m[None, :] * x_b + place[:, None], mask=there, other=0.0)
        sums = tl.dot(tl.reshape(weight.to(x_tile.dtype), [rows, columns]), x_tile, sums, input_precision="ieee")
        tile, scale = next_tile, next_scale
    if parts > 1:
        own = partial + (group * parts * rows + tl.arange(0, rows))[:, None] * batch_rows + m[None, :]
        tl.store(own + piece * rows * batch_rows, sums)
        tl.debug_barrier()  # all of this program's part is stored before it is counted
        if tl.atomic_add(finished + group, 1, sem="acq_rel") == parts - 1:
            total = tl.zeros([rows, batch_rows], tl.float32)
            for other in tl.static_range(parts):
                # past the multiprocessor's own cache, which does not see what others have stored
                total += tl.load(own + other * rows * batch_rows, cache_modifier=".cg")
            _store(total, bias, out, row, m, batch, count, biased)
            tl.store(finished + group, 0)  # for the next call
    else:
        _store(sums, bias, out, row, m, batch, count, biased)


def launch(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    nested: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    levels: torch.Tensor,
    block_size: int,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tile: tuple[int, int, int] | None = None,
) -> None:
    """Writes what `packed_product` returns; on one stream at a time.

    Args:
        x: Rows `[B, C]`, at most 64.
        packed: The matrix, as `packed_product` takes it, with what follows.
        absmax: Scales, or scales of scales.
        nested: Scales in 8 bits, their levels and what is added to them, or None three times.
        levels: The 16 values of a weight, in float32.
        block_size: Weights that share a scale; divides C.
        bias: What is added `[J]`, or None.
        out: `[B, J]`, contiguous.
        tile: Rows of the matrix and weights of a row of a program's part, and its warps; by default what suits.
    """
    x = unit_stride(x)
    batch, width = x.shape
    count = out.shape[1]
    rows, columns, warps = tile or (64, 128, 4)
    tile_blocks = max(1, columns // block_size)
    blocks, groups = width // block_size, -(-count // rows)
    batch_rows, tiles = power_of_two(batch), -(-blocks // tile_blocks)
    share = -(-tiles // best_parts(groups, tiles, multiprocessors(x.device), batch)) * tile_blocks
    parts = -(-blocks // share)
    scales, code, offset = nested
    partial = x.new_empty(groups * parts * rows * batch_rows if parts > 1 else 1, dtype=torch.float32)
    early = has_dependent_launch(x.device)
    _products[(groups, parts)](
        x, packed.reshape(-1).view(torch.int32), absmax, x if scales is None else scales, levels if code is None else code,
        levels if offset is None else offset, levels, x if bias is None else bias, out, partial,
        finished_parts(x.device, max(_GROUPS, groups)), batch, count, x.stride(0), share,
        width=width, block_size=block_size, rows=rows, tile_blocks=tile_blocks, batch_rows=batch_rows, parts=parts,
        nested=scales is not None, biased=bias is not None, early=early, num_warps=warps,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
