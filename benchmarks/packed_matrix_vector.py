"""Products of matrices of 4-bit weights and one vector by the engine's kernel, beside bitsandbytes' and what stands around it.

As `matrix_vector.py`: each call has weights of its own, and all calls are one CUDA graph. `x` is how many times as fast as bitsandbytes
the kernel is; `roof` the share of the measured copy bandwidth at which it reads packed weights and scales. On a CPU the operator
writes the weights out, which no engine does there: there the figures say only that the benchmark runs.

    python benchmarks/packed_matrix_vector.py --shapes 3584:3584+512+512:n,3584:18944+18944:ng,18944:3584:a --tiles 4:4096:4
"""

from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from matrix_vector import LLAMA_1B, QWEN_7B, compare, parsed
from torch.nn import functional as F

from efficientllm.serving.packed_matrix_vector import levels, packed_matrix_vector

BLOCK_SIZE, KIND = 64, "nf4"


def main() -> None:
    """Prints a row for each shape and tile, and writes the table if asked to."""
    arguments = parsed(__doc__, f"{LLAMA_1B},{QWEN_7B}", 5e8)
    read = ("packed", "absmax", "absmax_8bit")
    compare(arguments, _packed, read, "bitsandbytes", _by_bitsandbytes, packed_matrix_vector, _tiled)


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A matrix in 4 bits with scales in 8, and bitsandbytes' state of it."""
    packed, state = quantize_4bit(weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type=KIND)
    return packed, state


def _packed(weights: list[torch.Tensor]) -> dict[str, Any]:
    stored = [quantized(weight) for weight in weights]
    states = [state for _, state in stored]
    return {
        "packed": [packed for packed, _ in stored],
        "sizes": [weight.shape[0] for weight in weights],
        "absmax": [state.state2.absmax for state in states],
        "absmax_8bit": [state.absmax for state in states],
        "absmax_code": [state.state2.code for state in states],
        "absmax_offset": [state.offset for state in states],
        "block_size": BLOCK_SIZE,
        "quantization_type": KIND,
    }


def _by_bitsandbytes(
    row: torch.Tensor,
    gain: torch.Tensor | None,
    epsilon: float,
    addend: torch.Tensor | None,
    gated: bool,
    **stored: Any,
) -> torch.Tensor:
    x = row if gain is None else F.rms_norm(row, gain.shape, gain, epsilon)
    products = [
        torch.ops.bitsandbytes.gemm_4bit.default(
            x, packed, [size, row.shape[1]], absmax, BLOCK_SIZE, KIND, None, scales, code, offset
        )
        for packed, size, absmax, scales, code, offset in zip(
            *(stored[name] for name in ("packed", "sizes", "absmax", "absmax_8bit", "absmax_code", "absmax_offset")),
            strict=True,
        )
    ]
    out = F.silu(products[0]) * products[1] if gated else torch.cat(products, dim=1)
    return out if addend is None else out + addend


def _tiled(layer: dict[str, Any], tile: tuple[int, ...], out: torch.Tensor) -> None:
    from efficientllm.serving.packed_matrix_vector_kernels import launch

    row = layer.pop("row")
    launch(row[0], levels=levels(layer.pop("quantization_type"), row.device), out=out, tile=tile, **layer)


if __name__ == "__main__":
    main()
