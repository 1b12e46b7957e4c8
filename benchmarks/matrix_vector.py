"""Products of matrices and one vector by the engine's kernel, beside PyTorch's `F.linear` and what stands around it.

Each call has weights of its own, more of them than a GPU's cache holds, and all calls are one CUDA graph, as in decoding. `x` is how
many times as fast as PyTorch the kernel is; `roof` the share of the measured copy bandwidth at which it reads its weights.

    python benchmarks/matrix_vector.py --shapes 2048:2048+512+512:n,2048:8192+8192:ng,8192:2048:a --tiles 4:1024:4,2:4096:8
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from command_line import add_out, like, new_parser, positive, several, whole
from table import Row, write_table

from efficientllm.device import select_device, synchronize
from efficientllm.models.cuda_graphs import record
from efficientllm.serving.bandwidth import copy_bandwidth
from efficientllm.serving.matrix_vector import by_pytorch, matrix_vector

_EPSILON = 1e-5
LLAMA_1B = "2048:2048+512+512:n,2048:2048:a,2048:8192+8192:ng,8192:2048:a"
QWEN_7B = "3584:3584+512+512:n,3584:3584:a,3584:18944+18944:ng,18944:3584:a"
"""Products of a layer."""
_HEADS = "2048:128256:n,3584:152064:n"


def main() -> None:
    """Prints a row for each shape and tile, and writes the table if asked to."""

    def kept(weights: list[torch.Tensor]) -> dict[str, Any]:
        return {"weights": weights}

    def tiled(layer: dict[str, Any], tile: tuple[int, ...], out: torch.Tensor) -> None:
        from efficientllm.serving.matrix_vector_kernels import launch

        launch(layer.pop("row")[0], layer.pop("weights"), out, tile=tile, **layer)

    arguments = parsed(__doc__, f"{LLAMA_1B},{QWEN_7B},{_HEADS}", 1e9)
    compare(arguments, kept, ("weights",), "PyTorch", by_pytorch, matrix_vector, tiled)


def compare(
    arguments: argparse.Namespace,
    stored: Callable[[list[torch.Tensor]], dict[str, Any]],
    read: tuple[str, ...],
    baseline_name: str,
    baseline: Callable[..., torch.Tensor],
    operator: Callable[..., torch.Tensor],
    tiled: Callable[[dict[str, Any], tuple[int, ...], torch.Tensor], None],
) -> None:
    """Prints a row for each shape and tile, and writes the table if asked to.

    Args:
        arguments: The command line's.
        stored: Brings a layer's matrices into the form in which the operator takes them, by the names of its arguments.
        read: Names of those whose bytes are read.
        baseline_name: What the operator is compared with.
        baseline: Computes the same, with the operator's arguments.
        operator: What is measured.
        tiled: Launches the operator's kernel with a tile; may take the arguments apart.
    """
    rows = list[Row]()
    device = select_device()
    bandwidth = copy_bandwidth(device).bytes_per_second
    key = baseline_name.lower()
    for shape in arguments.shapes:
        width, matrices, around = shape.split(":")
        sizes = [int(size) for size in matrices.split("+")]
        layers = _drawn(int(width), sizes, around, arguments.bytes, device, stored, read)
        layer_bytes = _bytes(layers[0], read)
        with torch.inference_mode():
            by_baseline = microseconds(lambda i, layers=layers: baseline(**layers[i]), len(layers), arguments, device)
            for tile in arguments.tiles if device.type == "cuda" else ["none"]:
                taken = microseconds(_call(tile, layers, sizes, operator, tiled), len(layers), arguments, device)
                row = {
                    "shape": shape, "tile": tile, "megabytes": layer_bytes / 1e6, f"{key}_us": by_baseline, "us": taken,
                    f"x_{key}": by_baseline / taken, "roof": layer_bytes / (taken / 1e6) / bandwidth,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{shape:32s} {row['megabytes']:7.1f} MB  tile {tile:10s} {baseline_name} {by_baseline:7.2f} us  "
                    f"the kernel {taken:7.2f} us  x {baseline_name} {by_baseline / taken:.2f}  roof {row['roof']:.1%}",
                    flush=True,
                )
    if arguments.out:
        write_table(arguments.out, rows)


def _drawn(
    width: int,
    sizes: list[int],
    around: str,
    least_bytes: float,
    device: torch.device,
    stored: Callable[[list[torch.Tensor]], dict[str, Any]],
    read: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Layers of equal shape, with a norm (n), a gate (g) or something to add (a)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    gated = "g" in around

    def layer() -> dict[str, Any]:
        return {
            "row": normal(1, width),
            **stored([normal(size, width) / width**0.5 for size in sizes]),
            "gain": normal(width) if "n" in around else None,
            "epsilon": _EPSILON,
            "addend": normal(1, sizes[0] if gated else sum(sizes)) if "a" in around else None,
            "gated": gated,
        }

    first = layer()
    return [first, *(layer() for _ in range(round(least_bytes / _bytes(first, read)) - 1))]


def _bytes(layer: dict[str, Any], read: tuple[str, ...]) -> int:
    return sum(x.numel() * x.element_size() for name in read for x in layer[name])


def _call(
    tile: str,
    layers: list[dict[str, Any]],
    sizes: list[int],
    operator: Callable[..., torch.Tensor],
    tiled: Callable[[dict[str, Any], tuple[int, ...], torch.Tensor], None],
) -> Callable[[int], torch.Tensor]:
    if tile in ("default", "none"):
        return lambda index: operator(**layers[index])
    numbers = tuple(int(number) for number in tile.split(":"))

    def call(index: int) -> torch.Tensor:
        layer = dict(layers[index])
        out: torch.Tensor = layer["row"].new_empty(sizes[0] if layer["gated"] else sum(sizes))
        tiled(layer, numbers, out)
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


def parsed(description: str | None, shapes: str, least_bytes: float) -> argparse.Namespace:
    """The command line's arguments, by default these shapes and so many bytes."""
    parser = new_parser(description)
    parser.add_argument(
        "--shapes",
        type=several(like(r"\d+:\d+(\+\d+)*:[nga]*", "width:rows+rows:nga")),
        default=shapes,
        help="width:rows of each matrix, joined by +:what is around (n: a norm, g: SwiGLU's gate, a: something added)",
    )
    add_tiles(parser)
    parser.add_argument(
        "--bytes", type=positive, default=least_bytes, help="bytes of weights that a sequence of calls reads, about"
    )
    parser.add_argument("--repeats", type=whole(), default=20, help="timed sequences, of which the shortest counts")
    add_out(parser)
    return parser.parse_args()


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Adds --tiles."""
    form = "rows:columns:warps"
    parser.add_argument(
        "--tiles",
        type=several(like(r"default|\d+:\d+:\d+", form)),
        default="default",
        help=f"{form} of a program, on a GPU",
    )


if __name__ == "__main__":
    main()
