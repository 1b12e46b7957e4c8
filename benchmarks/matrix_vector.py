"""Products of matrices and one vector by the engine's kernel, beside PyTorch's `F.linear` and what stands around it.

Each call has weights of its own, more of them than a GPU's cache holds, and all calls are one CUDA graph, as in decoding. `x` is how
many times as fast as PyTorch the kernel is; `roof` the share of the measured copy bandwidth at which it reads its weights.

    python benchmarks/matrix_vector.py --shapes 2048:2048+512+512:n,2048:8192+8192:ng,8192:2048:a --tiles 4:1024:4,2:4096:8
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from csv_table import write_table

from efficientllm.device import select_device, synchronize
from efficientllm.models.cuda_graphs import record
from efficientllm.serving.bandwidth import copy_bandwidth
from efficientllm.serving.matrix_vector import by_pytorch, matrix_vector, result_size

_EPSILON = 1e-5
LLAMA_1B = "2048:2048+512+512:n,2048:2048:a,2048:8192+8192:ng,8192:2048:a"
QWEN_7B = "3584:3584+512+512:n,3584:3584:a,3584:18944+18944:ng,18944:3584:a"
"""Products of a layer."""
_HEADS = "2048:128256:n,3584:152064:n"


def main() -> None:
    """Prints a row for each shape and tile, and writes the table if asked to."""
    arguments, rows = _arguments(), list[dict[str, Any]]()
    device = select_device()
    bandwidth = copy_bandwidth(device).bytes_per_second
    for shape in arguments.shapes.split(","):
        width, sizes, around = shape.split(":")
        layers = _drawn(int(width), [int(size) for size in sizes.split("+")], around, arguments.bytes, device)
        weights_bytes = sum(weight.numel() * weight.element_size() for weight in layers[0]["weights"])
        with torch.inference_mode():
            baseline = microseconds(lambda i, layers=layers: by_pytorch(**layers[i]), len(layers), arguments, device)
            for tile in arguments.tiles.split(",") if device.type == "cuda" else ["none"]:
                call = _call(tile, layers)
                taken = microseconds(call, len(layers), arguments, device)
                row = {
                    "shape": shape, "tile": tile, "megabytes": weights_bytes / 1e6, "pytorch_us": baseline, "us": taken,
                    "x_pytorch": baseline / taken, "roof": weights_bytes / (taken / 1e6) / bandwidth,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{shape:32s} {row['megabytes']:7.1f} MB  tile {tile:10s} PyTorch {baseline:7.2f} us  "
                    f"the kernel {taken:7.2f} us  x PyTorch {row['x_pytorch']:.2f}  roof {row['roof']:.1%}",
                    flush=True,
                )
    if arguments.out:
        write_table(Path(arguments.out), rows)


def _drawn(width: int, sizes: list[int], around: str, least_bytes: float, device: torch.device) -> list[dict[str, Any]]:
    """Layers of equal shape, with a norm (n), a gate (g) or something to add (a)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    gated = "g" in around
    layer_bytes = 2 * width * sum(sizes)
    return [
        {
            "row": normal(1, width),
            "weights": [normal(size, width) / width**0.5 for size in sizes],
            "gain": normal(width) if "n" in around else None,
            "epsilon": _EPSILON,
            "addend": normal(1, sizes[0] if gated else sum(sizes)) if "a" in around else None,
            "gated": gated,
        }
        for _ in range(max(1, round(least_bytes / layer_bytes)))
    ]


def _call(tile: str, layers: list[dict[str, Any]]) -> Callable[[int], torch.Tensor]:
    if tile in ("default", "none"):
        return lambda index: matrix_vector(**layers[index])
    from efficientllm.serving.matrix_vector_kernels import launch

    rows, columns, warps = (int(number) for number in tile.split(":"))

    def call(index: int) -> torch.Tensor:
        layer = dict(layers[index])
        weights, row = layer.pop("weights"), layer.pop("row")
        out = row.new_empty(result_size(weights, layer["gated"]))
        launch(row[0], weights, out, tile=(rows, columns, warps), **layer)
        return out

    return call


def microseconds(
    call: Callable[[int], torch.Tensor], count: int, arguments: argparse.Namespace, device: torch.device
) -> float:
    """The shortest time of `arguments.repeats` of a call, in a sequence that is recorded where there is a GPU."""

    def sequence() -> None:
        for index in range(count):
            call(index)

    if device.type == "cuda":
        (replay,) = record([sequence], device)
    else:
        sequence()  # warms up
        replay = sequence
    shortest = float("inf")
    for _ in range(arguments.repeats):
        synchronize(device)
        started = time.perf_counter()
        replay()
        synchronize(device)
        shortest = min(shortest, time.perf_counter() - started)
    return 1e6 * shortest / count


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes",
        default=f"{LLAMA_1B},{QWEN_7B},{_HEADS}",
        help="width:rows of each matrix, joined by +:what is around (n: a norm, g: SwiGLU's gate, a: something added)",
    )
    parser.add_argument("--tiles", default="default", help="rows:columns:warps of a program, on a GPU")
    parser.add_argument("--bytes", type=float, default=1e9, help="of weights that a sequence of calls reads, at least")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", help="also write the table there, as CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
