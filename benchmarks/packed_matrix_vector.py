"""Products of matrices of 4-bit weights and one vector by the engine's kernel, beside bitsandbytes' and what stands around it.

As `matrix_vector.py`: each call has weights of its own, and all calls are one CUDA graph. `x` is how many times as fast as bitsandbytes
the kernel is; `roof` the share of the measured copy bandwidth at which it reads packed weights and scales. On a CPU the operator
writes the weights out, which no engine does there: there the figures say only that the benchmark runs.

    python benchmarks/packed_matrix_vector.py --shapes 3584:3584+512+512:n,3584:18944+18944:ng,18944:3584:a --tiles 4:4096:4
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from csv_table import write_table
from matrix_vector import LLAMA_1B, QWEN_7B, microseconds
from torch.nn import functional as F

from efficientllm.device import select_device
from efficientllm.serving.bandwidth import copy_bandwidth
from efficientllm.serving.packed_matrix_vector import levels, packed_matrix_vector

_EPSILON, _BLOCK_SIZE, _KIND = 1e-5, 64, "nf4"


def main() -> None:
    """Prints a row for each shape and tile, and writes the table if asked to."""
    arguments, rows = _arguments(), list[dict[str, Any]]()
    device = select_device()
    bandwidth = copy_bandwidth(device).bytes_per_second
    for shape in arguments.shapes.split(","):
        width, sizes, around = shape.split(":")
        layers = _drawn(int(width), [int(size) for size in sizes.split("+")], around, arguments.bytes, device)
        layer_bytes = sum(
            x.numel() * x.element_size() for name in ("packed", "absmax", "absmax_8bit") for x in layers[0][name]
        )
        with torch.inference_mode():
            baseline = microseconds(lambda i, layers=layers: _bitsandbytes(layers[i]), len(layers), arguments, device)
            for tile in arguments.tiles.split(",") if device.type == "cuda" else ["none"]:
                taken = microseconds(_call(tile, layers), len(layers), arguments, device)
                row = {
                    "shape": shape, "tile": tile, "megabytes": layer_bytes / 1e6, "bitsandbytes_us": baseline, "us": taken,
                    "x_bitsandbytes": baseline / taken, "roof": layer_bytes / (taken / 1e6) / bandwidth,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{shape:32s} {row['megabytes']:7.1f} MB  tile {tile:10s} bitsandbytes {baseline:7.2f} us  "
                    f"the kernel {taken:7.2f} us  x bitsandbytes {row['x_bitsandbytes']:.2f}  roof {row['roof']:.1%}",
                    flush=True,
                )
    if arguments.out:
        write_table(Path(arguments.out), rows)


def _drawn(width: int, sizes: list[int], around: str, least_bytes: float, device: torch.device) -> list[dict[str, Any]]:
    """Layers of equal shape, with a norm (n), a gate (g) or something to add (a)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def layer() -> dict[str, Any]:
        quantized = [
            quantize_4bit(
                normal(size, width) / width**0.5, blocksize=_BLOCK_SIZE, compress_statistics=True, quant_type=_KIND
            )
            for size in sizes
        ]
        states = [state for _, state in quantized]
        return {
            "row": normal(1, width),
            "packed": [packed for packed, _ in quantized],
            "sizes": sizes,
            "absmax": [state.state2.absmax for state in states],
            "absmax_8bit": [state.absmax for state in states],
            "absmax_code": [state.state2.code for state in states],
            "absmax_offset": [state.offset for state in states],
            "block_size": _BLOCK_SIZE,
            "quantization_type": _KIND,
            "gain": normal(width) if "n" in around else None,
            "epsilon": _EPSILON,
            "addend": normal(1, sizes[0] if "g" in around else sum(sizes)) if "a" in around else None,
            "gated": "g" in around,
        }

    return [layer() for _ in range(max(1, round(2 * least_bytes / (width * sum(sizes)))))]


def _bitsandbytes(layer: dict[str, Any]) -> torch.Tensor:
    x, gain, width = layer["row"], layer["gain"], layer["row"].shape[1]
    x = x if gain is None else F.rms_norm(x, gain.shape, gain, layer["epsilon"])
    products = [
        torch.ops.bitsandbytes.gemm_4bit.default(
            x, packed, [size, width], absmax, _BLOCK_SIZE, _KIND, None, scales, code, offset
        )
        for packed, size, absmax, scales, code, offset in zip(
            *(layer[name] for name in ("packed", "sizes", "absmax", "absmax_8bit", "absmax_code", "absmax_offset")),
            strict=True,
        )
    ]
    out = F.silu(products[0]) * products[1] if layer["gated"] else torch.cat(products, dim=1)
    return out if layer["addend"] is None else out + layer["addend"]


def _call(tile: str, layers: list[dict[str, Any]]) -> Callable[[int], torch.Tensor]:
    if tile in ("default", "none"):
        return lambda index: packed_matrix_vector(**layers[index])
    from efficientllm.serving.packed_matrix_vector_kernels import launch

    rows, columns, warps = (int(number) for number in tile.split(":"))

    def call(index: int) -> torch.Tensor:
        layer = dict(layers[index])
        row, kind, sizes = layer.pop("row"), layer.pop("quantization_type"), layer.pop("sizes")
        out = row.new_empty(sizes[0] if layer["gated"] else sum(sizes))
        launch(row[0], levels=levels(kind, row.device), out=out, tile=(rows, columns, warps), **layer)
        return out

    return call


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes",
        default=f"{LLAMA_1B},{QWEN_7B}",
        help="width:rows of each matrix, joined by +:what is around (n: a norm, g: SwiGLU's gate, a: something added)",
    )
    parser.add_argument("--tiles", default="default", help="rows:weights of a row:warps of a program, on a GPU")
    parser.add_argument("--bytes", type=float, default=5e8, help="of weights that a sequence of calls reads, at least")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", help="also write the table there, as CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
