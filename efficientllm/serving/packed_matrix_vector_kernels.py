"""Products of matrices of 4-bit weights and one vector, with what stands around them, each in one launch.

A level is looked up in a table in the multiprocessor's shared memory: four instructions a weight, of which one adds the product.
Instructions are the time, not bytes (docs/log.md has both). Levels and scales are not rounded on the way, as they are where weights
are first written out in 16 bits.
"""

from collections.abc import Sequence

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.device import has_dependent_launch
from efficientllm.models.sparse_kernels.tiles import after_earlier_kernels, unit_stride
from efficientllm.serving.matrix_vector_kernels import chosen, dense, divided, filled, part, store


@triton.jit
def load_packed(
    packed, absmax, absmax_8bit, code, offset, row, block, count, end,
    blocks: tl.constexpr, words: tl.constexpr, nested: tl.constexpr,
):  # fmt: skip
    """Eight weights of 4 bits a word `[rows, blocks, words of a block]`, and each block's scale `[rows, blocks]`; zeros from `end` on."""
    index = row[:, None].to(tl.int64) * blocks + block[None, :]
    inside = (row < count)[:, None] & (block < end)[None, :]
    word = tl.arange(0, words)
    tile = tl.load(
        packed + index[:, :, None] * words + word[None, None, :],
        mask=inside[:, :, None], other=0, eviction_policy="evict_first",
    )  # fmt: skip
    if not nested:
        return tile, tl.load(absmax + index, mask=inside, other=0.0)
    # scales in 8 bits: levels of their own, in blocks of 256
    level = tl.load(code + tl.load(absmax_8bit + index, mask=inside, other=0).to(tl.int32))
    scale = level * tl.load(absmax + index // 256, mask=inside, other=0.0) + tl.load(offset)
    return tile, tl.where(inside, scale, 0.0)


@triton.jit
def _dots(tile, scale, levels, vector, shape: tl.constexpr, numbers: tl.constexpr):
    """Each word's sum of products. A byte's first weight is in its upper half."""
    shift = 4 * (tl.arange(0, 8) ^ 1)
    level = (tile[:, :, :, None] >> shift[None, None, None, :]) & 15
    weight = tl.reshape(tl.gather(levels, tl.reshape(level, [numbers]), 0), shape)
    return tl.sum(weight * vector, 3) * scale[:, :, None]


@triton.jit
def _products(
    x, gain, packed_0, packed_1, packed_2, absmax_0, absmax_1, absmax_2, absmax_8bit_0, absmax_8bit_1, absmax_8bit_2,
    code_0, code_1, code_2, offset_0, offset_1, offset_2, levels, addend, out,
    count_0, count_1, count_2, blocks_0, blocks_1, epsilon,
    width: tl.constexpr, block_size: tl.constexpr, rows: tl.constexpr, tile_blocks: tl.constexpr,
    nested: tl.constexpr, normed: tl.constexpr, added: tl.constexpr, gated: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    second, third, count, start, block = part(tl.program_id(0), count_0, count_1, count_2, blocks_0, blocks_1, gated)
    packed, absmax, absmax_8bit, code, offset = packed_0, absmax_0, absmax_8bit_0, code_0, offset_0
    if not gated:
        packed = chosen(second, third, packed_0, packed_1, packed_2)
        absmax = chosen(second, third, absmax_0, absmax_1, absmax_2)
        absmax_8bit = chosen(second, third, absmax_8bit_0, absmax_8bit_1, absmax_8bit_2)
        code = chosen(second, third, code_0, code_1, code_2)
        offset = chosen(second, third, offset_0, offset_1, offset_2)
    words: tl.constexpr = block_size // 8
    blocks: tl.constexpr = width // block_size
    columns: tl.constexpr = tile_blocks * block_size
    row, column, b = block * rows + tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, tile_blocks)
    first, first_scale = load_packed(
        packed, absmax, absmax_8bit, code, offset, row, b, count, blocks, blocks, words, nested
    )
    first_up, first_up_scale = first, first_scale
    if gated:
        first_up, first_up_scale = load_packed(
            packed_1, absmax_1, absmax_8bit_1, code_1, offset_1, row, b, count, blocks, blocks, words, nested
        )
    table = tl.load(levels + tl.arange(0, 16))
    after_earlier_kernels(early)
    dots = tl.zeros([rows, tile_blocks, words], tl.float32)
    dots_up = tl.zeros([rows, tile_blocks, words], tl.float32)
    squares = tl.zeros([columns], tl.float32)
    for k in tl.static_range(0, blocks, tile_blocks):
        place = k * block_size + column
        inside = place < width
        vector = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if normed:
            squares += vector * vector
            vector *= tl.load(gain + place, mask=inside, other=0.0).to(tl.float32)
        vector = tl.reshape(vector, [1, tile_blocks, words, 8])
        tile, scale = first, first_scale
        if k > 0:
            tile, scale = load_packed(
                packed, absmax, absmax_8bit, code, offset, row, k + b, count, blocks, blocks, words, nested
            )
        dots += _dots(tile, scale, table, vector, [rows, tile_blocks, words, 8], rows * columns)
        if gated:
            tile, scale = first_up, first_up_scale
            if k > 0:
                tile, scale = load_packed(
                    packed_1, absmax_1, absmax_8bit_1, code_1, offset_1, row, k + b, count, blocks, blocks, words, nested,
                )  # fmt: skip
            dots_up += _dots(tile, scale, table, vector, [rows, tile_blocks, words, 8], rows * columns)
    up = tl.sum(tl.reshape(dots_up, [rows, tile_blocks * words]), 1) if gated else 1.0
    result = tl.sum(tl.reshape(dots, [rows, tile_blocks * words]), 1)
    store(result, up, squares, addend, out, start, row, count, width, epsilon, normed, added, gated)


def launch(
    x: torch.Tensor,
    packed: Sequence[torch.Tensor],
    sizes: Sequence[int],
    absmax: Sequence[torch.Tensor],
    absmax_8bit: Sequence[torch.Tensor],
    absmax_code: Sequence[torch.Tensor],
    absmax_offset: Sequence[torch.Tensor],
    levels: torch.Tensor,
    block_size: int,
    out: torch.Tensor,
    *,
    gain: torch.Tensor | None = None,
    epsilon: float = 0.0,
    addend: torch.Tensor | None = None,
    gated: bool = False,
    tile: tuple[int, int, int] | None = None,
) -> None:
    """Writes what `packed_matrix_vector` returns; the kernel before may still run while weights are read, so it must not write them.

    Args:
        x: The vector `[C]`.
        packed: As `packed_matrix_vector`, with all that follows.
        sizes: J of each matrix.
        absmax: Scales, or scales of scales.
        absmax_8bit: Scales in 8 bits, or nothing.
        absmax_code: Their levels.
        absmax_offset: What is added to them.
        levels: The 16 values of a weight, in float32.
        block_size: Weights that share a scale; divides C.
        out: As many numbers as `packed_matrix_vector` returns.
        gain: RMSNorm's weight `[C]`, where x is to be normalized first.
        epsilon: RMSNorm's.
        addend: What is added, of the size of `out`.
        gated: Whether the second matrix' product is gated by the first's.
        tile: Rows and weights of a row of a program's part, and its warps; by default what suits the width.
    """
    x, gain, addend = unit_stride(x), dense(gain), dense(addend)
    width = x.shape[0]
    rows, columns, warps = tile or ((8, 2048, 4) if width <= 2048 else (4, 4096, 4))
    columns = max(block_size, min(columns, int(triton.next_power_of_2(width))))
    nested = len(absmax_8bit) > 0
    words = [matrix.reshape(-1).view(torch.int32) for matrix in packed]
    programs, parts = divided(sizes, rows, gated)
    early = has_dependent_launch(x.device)
    _products[(programs,)](
        x, x if gain is None else gain, *filled(words), *filled(absmax), *filled(absmax_8bit if nested else [x]),
        *filled(absmax_code if nested else [levels]), *filled(absmax_offset if nested else [levels]), levels,
        out if addend is None else addend, out, *parts, epsilon,
        width=width, block_size=block_size, rows=rows, tile_blocks=columns // block_size, nested=nested,
        normed=gain is not None, added=addend is not None, gated=gated, early=early, num_warps=warps,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
