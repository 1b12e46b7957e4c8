"""Decoding with the engine's own attention kernel, beside the kernel that PyTorch takes by itself.

The engine's splits the keys among a GPU's multiprocessors. Both engines are of one process and are timed by turns; a token's time
holds a few layers as a whole, attention and all else. `x PyTorch's` is how many times as fast as with PyTorch's kernel decoding is.

    python benchmarks/decoding_attention.py --heads 32:8:64,12:2:128 --batches 1,8,64 --contexts 512,2032,8176
"""

import argparse
import contextlib
import time
from typing import Any
from unittest import mock

import torch
from command_line import add_out, like, new_parser, several, whole
from table import Row, write_table

from efficientllm.device import select_device, synchronize
from efficientllm.models import decoding_attention
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.serving.engine import GreedyEngine

_VOCABULARY = 16384


def main() -> None:
    """Prints a row for each shape, and writes the table if asked to."""
    arguments, rows = _arguments(), list[Row]()
    device = select_device()
    for heads, key_heads, width in (map(int, shape.split(":")) for shape in arguments.heads):
        decoder = _decoder(
            heads, key_heads, width, arguments.layers, max(arguments.contexts) + arguments.tokens, device
        )
        for batch in arguments.batches:
            for context in arguments.contexts:
                row = {"heads": heads, "key_heads": key_heads, "width": width, "batch": batch, "context": context}
                row |= _measured(decoder, batch, context, arguments.tokens, arguments.repeats)
                rows.append(row)
                print(
                    f"{heads:3d} heads, {key_heads:2d} of keys x {width:3d}  batch {batch:3d}  {context:5d} tokens  "
                    f"PyTorch's choice {row['pytorch_ms']:.3f} ms  the engine's {row['engine_ms']:.3f} ms  "
                    f"x PyTorch's {row['x_pytorch']:.2f}  [{row['execution']}]",
                    flush=True,
                )
    if arguments.out:
        write_table(arguments.out, rows)


def _measured(decoder: Decoder, batch: int, context: int, tokens: int, repeats: int) -> Row:
    """Milliseconds a token, the shortest of some calls: what a busy host adds is not the kernel's."""
    with _by_pytorch():
        pytorch = _prefilled(decoder, batch, context, tokens)
    chosen = _prefilled(decoder, batch, context, tokens)
    device, shortest = decoder.embed_tokens.weight.device, [float("inf")] * 2
    for _ in range(repeats):
        for index, (engine, kernels) in enumerate(((pytorch, _by_pytorch), (chosen, contextlib.nullcontext))):
            with kernels():  # where steps could not be recorded, kernels are chosen anew in each
                synchronize(device)
                started = time.perf_counter()
                engine.decode()
                synchronize(device)
                shortest[index] = min(shortest[index], 1000 * (time.perf_counter() - started) / tokens)
    return {
        "pytorch_ms": shortest[0], "engine_ms": shortest[1], "x_pytorch": shortest[0] / shortest[1], "execution": chosen.execution,
    }  # fmt: skip


def _by_pytorch() -> contextlib.AbstractContextManager[Any]:
    """Makes the engine leave attention to PyTorch's choice."""
    return mock.patch.object(decoding_attention, "takes_own_kernel", lambda *_: False)


def _prefilled(decoder: Decoder, batch: int, context: int, tokens: int) -> GreedyEngine:
    engine = GreedyEngine(decoder, batch, context, tokens + 1)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(_VOCABULARY, (batch, context), generator=generator)
    engine.prefill(prompts.to(decoder.embed_tokens.weight.device))
    engine.decode()
    return engine


def _decoder(heads: int, key_heads: int, width: int, layers: int, context: int, device: torch.device) -> Decoder:
    config = DecoderConfig(
        vocabulary_size=_VOCABULARY, hidden_size=heads * width, layers=layers, heads=heads, key_value_heads=key_heads,
        intermediate_size=3 * heads * width, context_length=context + 1, tie_embeddings=False, block="pre_norm", mixer="gqa",
        position="rope", feedforward="swiglu", mixer_options={}, position_options={}, feedforward_options={},
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return build_decoder(config, device=device, dtype=dtype).requires_grad_(False).eval()


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    heads = "query heads:key heads:width of a head"
    parser.add_argument(
        "--heads", type=several(like(r"\d+:\d+:\d+", heads)), default="32:8:64,12:2:128,12:4:64", help=heads
    )
    parser.add_argument("--batches", type=several(whole()), default="1,8,64", help="sequences decoded at once")
    parser.add_argument(
        "--contexts",
        type=several(whole()),
        default="512,1100,2032,8176",
        help="tokens in the cache when decoding begins",
    )
    parser.add_argument("--layers", type=whole(), default=4, help="layers of the decoder")
    parser.add_argument("--tokens", type=whole(), default=16, help="tokens of a timed call")
    parser.add_argument("--repeats", type=whole(), default=6, help="timed calls, of which the shortest counts")
    add_out(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
