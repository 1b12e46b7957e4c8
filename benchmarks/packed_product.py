"""Products of a few rows with matrices of 4-bit weights by the engine's kernel, beside bitsandbytes' and bfloat16's.

Each call has weights of its own, more of them than a GPU's cache holds, and all calls are one CUDA graph, as in decoding. `x` is how
many times as fast as bitsandbytes, or as the library's product in 16 bits, the kernel is. On a CPU the operator is bitsandbytes'
own: there the figures say only that the benchmark runs.

    python benchmarks/packed_product.py --shapes 3584:18944,18944:3584 --rows 2,8,64 --tiles 64:128:4,64:256:4
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from command_line import add_out, like, new_parser, positive, several, whole
from matrix_vector import add_tiles, microseconds
from packed_matrix_vector import BLOCK_SIZE, KIND, quantized
from table import Row, write_table

from efficientllm.device import select_device
from efficientllm.serving.packed_matrix_vector import levels
from efficientllm.serving.packed_product import packed_product

_SHAPES = "2048:2048,2048:8192,8192:2048,3584:512,3584:3584,3584:18944,18944:3584"
"""Products of layers of Llama-3.2-1B and Qwen2.5-7B."""


def main() -> None:
    """Prints a line for each shape, number of rows and tile, and writes the table if asked to."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--shapes", type=several(like(r"\d+:\d+", "width:rows")), default=_SHAPES, help="width:rows of each matrix"
    )
    parser.add_argument("--rows", type=several(whole()), default="2,8,64", help="rows that are multiplied together")
    add_tiles(parser)
    parser.add_argument(
        "--weights", type=positive, default=5e8, help="weights that a sequence of calls multiplies, about"
    )
    parser.add_argument("--repeats", type=whole(), default=20, help="timed sequences, of which the shortest counts")
    add_out(parser)
    arguments = parser.parse_args()
    device = select_device()
    lines = list[Row]()
    for shape in arguments.shapes:
        width, size = (int(number) for number in shape.split(":"))
        count = max(1, round(arguments.weights / (width * size)))
        plain = [torch.randn(size, width, device=device, dtype=torch.bfloat16) / width**0.5 for _ in range(count)]
        stored = [_stored(matrix) for matrix in plain]
        for rows in arguments.rows:
            x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
            with torch.inference_mode():
                lines += _compared(shape, x, plain, stored, arguments, device)
    if arguments.out:
        write_table(arguments.out, lines)


def _stored(matrix: torch.Tensor) -> tuple[Any, ...]:
    """All arguments of a product behind x."""
    packed, state = quantized(matrix)
    scales = (state.absmax, state.state2.code, state.offset)
    return packed, list(matrix.shape), state.state2.absmax, BLOCK_SIZE, KIND, None, *scales


def _compared(
    shape: str,
    x: torch.Tensor,
    plain: list[torch.Tensor],
    stored: list[tuple[Any, ...]],
    arguments: argparse.Namespace,
    device: torch.device,
) -> list[Row]:
    def timed(call: Callable[[int], torch.Tensor]) -> float:
        return microseconds(call, len(plain), arguments, device)

    by_bitsandbytes = timed(lambda index: torch.ops.bitsandbytes.gemm_4bit.default(x, *stored[index]))
    in_bfloat16 = timed(lambda index: x @ plain[index].T)
    lines = []
    for tile in arguments.tiles if device.type == "cuda" else ["none"]:
        taken = timed(_call(tile, x, stored))
        lines.append(
            {
                "shape": shape, "rows": len(x), "tile": tile, "bitsandbytes_us": by_bitsandbytes, "bfloat16_us": in_bfloat16,
                "us": taken, "x_bitsandbytes": by_bitsandbytes / taken, "x_bfloat16": in_bfloat16 / taken,
            }
        )  # fmt: skip
        print(
            f"{shape:12s} {len(x):3d} rows  tile {tile:10s} bitsandbytes {by_bitsandbytes:7.2f} us  bfloat16 {in_bfloat16:7.2f} us  "
            f"the kernel {taken:7.2f} us  x bitsandbytes {by_bitsandbytes / taken:.2f}  x bfloat16 {in_bfloat16 / taken:.2f}",
            flush=True,
        )
    return lines


def _call(tile: str, x: torch.Tensor, stored: list[tuple[Any, ...]]) -> Callable[[int], torch.Tensor]:
    if tile in ("default", "none"):
        return lambda index: packed_product(x, *stored[index])
    numbers = tuple(int(number) for number in tile.split(":"))

    def call(index: int) -> torch.Tensor:
        from efficientllm.serving.packed_product_kernels import launch

        packed, (size, _), absmax, block_size, kind, bias, *scales = stored[index]
        out = x.new_empty(len(x), size)
        launch(x, packed, absmax, scales, levels(kind, x.device), block_size, bias, out, tile=numbers)
        return out

    return call


if __name__ == "__main__":
    main()
