"""Products of a few rows with matrices of 4-bit weights by the engine's kernel, beside bitsandbytes' and bfloat16's.

Each call has weights of its own, more of them than a GPU's cache holds, and all calls are one CUDA graph, as in decoding. `x` is how
many times as fast as bitsandbytes, or as the library's product in 16 bits, the kernel is. On a CPU the operator is bitsandbytes'
own: there the figures say only that the benchmark runs.

    python benchmarks/packed_product.py --shapes 3584:18944,18944:3584 --rows 2,8,64 --tiles 64:128:4,64:256:4
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from csv_table import write_table
from matrix_vector import microseconds
from packed_matrix_vector import BLOCK_SIZE, KIND, quantized

from efficientllm.device import select_device
from efficientllm.serving.packed_matrix_vector import levels
from efficientllm.serving.packed_product import packed_product

_SHAPES = "2048:2048,2048:8192,8192:2048,3584:512,3584:3584,3584:18944,18944:3584"
"""Products of layers of Llama-3.2-1B and Qwen2.5-7B."""


def main() -> None:
    """Prints a line for each shape, number of rows and tile, and writes the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=_SHAPES, help="width:rows of each matrix")
    parser.add_argument("--rows", default="2,8,64", help="rows that are multiplied together")
    parser.add_argument("--tiles", default="default", help="rows:columns:warps of a program, on a GPU")
    parser.add_argument("--weights", type=float, default=5e8, help="that a sequence of calls multiplies, at least")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", help="also write the table there, as CSV")
    arguments = parser.parse_args()
    device = select_device()
    lines = list[dict[str, Any]]()
    for shape in arguments.shapes.split(","):
        width, size = (int(number) for number in shape.split(":"))
        count = max(1, round(arguments.weights / (width * size)))
        plain = [torch.randn(size, width, device=device, dtype=torch.bfloat16) / width**0.5 for _ in range(count)]
        stored = [_stored(matrix) for matrix in plain]
        for rows in (int(number) for number in arguments.rows.split(",")):
            x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
            with torch.inference_mode():
                lines += _compared(shape, x, plain, stored, arguments, device)
    if arguments.out:
        write_table(Path(arguments.out), lines)


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
) -> list[dict[str, Any]]:
    def timed(call: Callable[[int], torch.Tensor]) -> float:
        return microseconds(call, len(plain), arguments, device)

    by_bitsandbytes = timed(lambda index: torch.ops.bitsandbytes.gemm_4bit.default(x, *stored[index]))
    in_bfloat16 = timed(lambda index: x @ plain[index].T)
    lines = []
    for tile in arguments.tiles.split(",") if device.type == "cuda" else ["none"]:
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
