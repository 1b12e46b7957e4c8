"""Products of matrices and one vector, with what stands around them, each in one launch.

A matrix is read once, so its bytes are the time, and what a kernel does before its first bytes arrive is lost. Programs are
small and many: all of a layer's weights are asked for at once, on a device that has programmatic dependent launch (Hopper
and later) before the kernel that computes the vector has ended.
"""

from collections.abc import Sequence

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from efficientllm.device import has_dependent_launch
from efficientllm.models.sparse_kernels.tiles import after_earlier_kernels, unit_stride
from efficientllm.serving.matrix_vector import MOST_MATRICES


@triton.jit
def _tile(weight, rows, columns, count, width: tl.constexpr, whole: tl.constexpr):
    address = weight + rows[:, None].to(tl.int64) * width + columns[None, :]
    if whole:
        return tl.load(address, mask=(rows < count)[:, None], other=0.0, eviction_policy="evict_first")
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    return tl.load(address, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def part(block, count_0, count_1, count_2, blocks_0, blocks_1, gated: tl.constexpr):
    """Which matrix a program has (two flags), its rows, where they start in the result, and the block among them."""
    second, third = block < 0, block < 0
    count, start = count_0, 0
    if not gated:
        second, third = (block >= blocks_0) & (block < blocks_0 + blocks_1), block >= blocks_0 + blocks_1
        count = tl.where(third, count_2, tl.where(second, count_1, count_0))
        start = tl.where(third, count_0 + count_1, tl.where(second, count_0, 0))
        block -= tl.where(third, blocks_0 + blocks_1, tl.where(second, blocks_0, 0))
    return second, third, count, start, block


@triton.jit
def chosen(second, third, first_address, second_address, third_address):
    """The address that belongs to a program's matrix, by the flags that `part` returns."""
    return tl.where(third, third_address, tl.where(second, second_address, first_address))


@triton.jit
def store(
    result, up, squares, addend, out, start, row, count, width, epsilon,
    normed: tl.constexpr, added: tl.constexpr, gated: tl.constexpr,
):  # fmt: skip
    """Writes sums of products, with the norm's scale, the gate and what is added."""
    scale = tl.rsqrt(tl.sum(squares, 0) / width + epsilon) if normed else 1.0
    result *= scale
    if gated:
        result = result / (1 + tl.exp(-result)) * (up * scale)
    if added:
        result += tl.load(addend + start + row, mask=row < count, other=0.0).to(tl.float32)
    tl.store(out + start + row, result, mask=row < count)


@triton.jit
def _products(
    x, gain, weight_0, weight_1, weight_2, addend, out, count_0, count_1, count_2, blocks_0, blocks_1, epsilon,
    width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    normed: tl.constexpr, added: tl.constexpr, gated: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    second, third, count, start, block = part(tl.program_id(0), count_0, count_1, count_2, blocks_0, blocks_1, gated)
    weight = weight_0 if gated else chosen(second, third, weight_0, weight_1, weight_2)
    row, column = block * rows + tl.arange(0, rows), tl.arange(0, columns)
    whole: tl.constexpr = width % columns == 0
    first = _tile(weight, row, column, count, width, whole)
    first_up = _tile(weight_1, row, column, count, width, whole) if gated else first
    after_earlier_kernels(early)
    dots = tl.zeros([rows, columns], tl.float32)
    dots_up = tl.zeros([rows, columns], tl.float32)
    squares = tl.zeros([columns], tl.float32)
    for k in tl.static_range(0, width, columns):
        inside = k + column < width
        vector = tl.load(x + k + column, mask=inside, other=0.0).to(tl.float32)
        if normed:
            squares += vector * vector
            vector *= tl.load(gain + k + column, mask=inside, other=0.0).to(tl.float32)
        tile = first if k == 0 else _tile(weight, row, k + column, count, width, whole)
        dots += tile.to(tl.float32) * vector[None, :]
        if gated:
            tile_up = first_up if k == 0 else _tile(weight_1, row, k + column, count, width, whole)
            dots_up += tile_up.to(tl.float32) * vector[None, :]
    up = tl.sum(dots_up, 1) if gated else 1.0
    store(tl.sum(dots, 1), up, squares, addend, out, start, row, count, width, epsilon, normed, added, gated)


def launch(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    out: torch.Tensor,
    *,
    gain: torch.Tensor | None = None,
    epsilon: float = 0.0,
    addend: torch.Tensor | None = None,
    gated: bool = False,
    tile: tuple[int, int, int] | None = None,
) -> None:
    """Writes what `matrix_vector` returns; the kernel before may still run while weights are read, so it must not write them.

    Args:
        x: The vector `[C]`.
        weights: One to three matrices `[J, C]`.
        out: As many numbers as `matrix_vector` returns.
        gain: RMSNorm's weight `[C]`, where x is to be normalized first.
        epsilon: RMSNorm's.
        addend: What is added, of the size of `out`.
        gated: Whether the second matrix' product is gated by the first's.
        tile: Rows and columns of a program's part, and its warps; by default what suits the width.
    """
    x, gain, addend = unit_stride(x), dense(gain), dense(addend)
    width = x.shape[0]
    rows, columns, warps = tile or ((4, 1024, 4) if width <= 2048 else (2, 4096, 8))
    columns = min(columns, int(triton.next_power_of_2(width)))
    programs, parts = divided([weight.shape[0] for weight in weights], rows, gated)
    early = has_dependent_launch(x.device)
    _products[(programs,)](
        x, x if gain is None else gain, *filled(weights), out if addend is None else addend, out, *parts, epsilon,
        width=width, rows=rows, columns=columns, normed=gain is not None, added=addend is not None, gated=gated,
        early=early, num_warps=warps, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip


def dense(vector: torch.Tensor | None) -> torch.Tensor | None:
    """A vector whose numbers lie side by side; those that lie apart (a slice, an expanded one) are rare, and copied."""
    return None if vector is None else unit_stride(vector.reshape(-1))


def filled(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """As many matrices as the kernels take, the first one in the place of those that are not there."""
    return [*matrices, matrices[0], matrices[0]][:MOST_MATRICES]


def divided(sizes: Sequence[int], rows: int, gated: bool) -> tuple[int, list[int]]:
    """How many programs there are, and what `part` takes: rows of each matrix, and blocks of the first two."""
    counts = [*sizes] + [0] * (MOST_MATRICES - len(sizes))
    blocks = [-(-count // rows) for count in counts]
    return blocks[0] if gated else sum(blocks), [*counts, *blocks[:2]]
