"""Serving by our engine beside llama.cpp, with the same weights in the same process.

    pip install llama-cpp-python      # no dependency of this project; it compiles llama.cpp
    python benchmarks/serving_llama_cpp.py --shape 168M --precisions bfloat16,int4 --batches 1,8 --out llama.csv

Weights are random, written as a GGUF file for llama.cpp; requests are of forced length and greedy. 16-bit weights are the same
numbers, and `same` is the share of tokens that are; random weights make near ties, which are rounded otherwise, and after one
other token all that follow are others. 8 and 4 bits are other formats on each side (LLM.int8() and NF4 here, Q8_0 and Q4_0
there) of the same nominal size. Embeddings stay in 16 bits on both sides. Times are medians of whole requests, taken by turns
after one of each that is not counted.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import (
    add_names,
    add_out,
    add_profile,
    add_requests,
    new_parser,
    profile_block,
    whole,
)
from devices import release
from gguf_file import BFLOAT16, TYPES, write_llama
from serving_engines import SHAPES, make_model
from table import Row, write_table

from efficientllm.device import select_device, synchronize
from efficientllm.measurement.memory import GIB
from efficientllm.models.accounting import bytes_in_memory
from efficientllm.serving.engine import GreedyEngine


def main() -> None:
    """Serves every precision and batch by both engines."""
    arguments = _arguments()
    device = select_device()
    threads = torch.get_num_threads()
    print(f"{device}, {threads} threads of {os.cpu_count()}; prompt {arguments.prompt}, output {arguments.output}")
    rows: list[Row] = []
    for key in arguments.precisions:
        with tempfile.TemporaryDirectory() as folder:
            _served(key, Path(folder) / "model.gguf", arguments, device, threads, rows)
        release(device)


def _served(
    key: str, path: Path, arguments: argparse.Namespace, device: torch.device, threads: int, rows: list[Row]
) -> None:
    """Makes a model in one precision for both engines, and serves it at all batch sizes."""
    longest = arguments.prompt + arguments.output
    whole_model = make_model(arguments.shape, "bfloat16", "generate", longest, {}, device)
    kind = TYPES[key]
    sixteen = kind if key in ("bfloat16", "float16") else BFLOAT16
    stored = write_llama(path, whole_model, linear=kind, embedding=sixteen)
    words = whole_model.config.vocab_size
    del whole_model
    release(device)
    decoder = make_model(arguments.shape, key, "ours", longest, arguments.options[key], device)
    for batch in arguments.batches:
        prompts = torch.randint(words, (batch, arguments.prompt), generator=torch.Generator().manual_seed(1))
        row = {
            "shape": arguments.shape, "precision": key, "batch": batch, "device": str(device), "threads": threads,
            "ours_gib": bytes_in_memory(decoder) / GIB, "llama_cpp_gib": stored / GIB,
        }  # fmt: skip
        row |= _compared(decoder, path, prompts.to(device), arguments, threads)
        rows.append(row)
        _print(row)
        if arguments.out:
            write_table(arguments.out, rows)


def _compared(decoder: Any, path: Path, prompts: torch.Tensor, arguments: argparse.Namespace, threads: int) -> Row:
    """Takes whole requests and their first tokens by turns."""
    from llama_cpp_server import LlamaCpp

    batch, output = len(prompts), arguments.output
    ours = GreedyEngine(decoder, batch, arguments.prompt, output)
    theirs = LlamaCpp(path, batch, arguments.prompt, output, threads)
    plain = prompts.cpu().numpy()

    def our_request() -> np.ndarray:
        return ours.generate(prompts).tokens.cpu().numpy()

    def their_request() -> np.ndarray:
        first = theirs.prefill(plain)
        return np.concatenate([first[:, None], theirs.decode(first)], axis=1)

    calls: dict[str, Callable[[], Any]] = {
        "ours": our_request,
        "llama_cpp": their_request,
        "ours_first": lambda: ours.prefill(prompts),
        "llama_cpp_first": lambda: theirs.prefill(plain),
    }
    try:
        # not counted, for memory is touched for the first time
        tokens = {name: calls[name]() for name in ("ours", "llama_cpp")}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                synchronize(prompts.device)
                seconds[name].append(time.perf_counter() - started)
    finally:
        theirs.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found: Row = {"same": float((tokens["ours"] == tokens["llama_cpp"]).mean())}
    for name in ("ours", "llama_cpp"):
        found[f"{name}_ttft_ms"] = 1000 * median[f"{name}_first"]
        found[f"{name}_itl_ms"] = 1000 * (median[name] - median[f"{name}_first"]) / (output - 1)
        found[f"{name}_tokens_per_second"] = batch * output / median[name]
    found["x_llama_cpp"] = found["ours_tokens_per_second"] / found["llama_cpp_tokens_per_second"]
    return found


def _print(row: Row) -> None:
    parts = [
        f"{name.replace('_', '.')}: first {row[f'{name}_ttft_ms']:.1f} ms, next {row[f'{name}_itl_ms']:.2f} ms, "
        f"{row[f'{name}_tokens_per_second']:.0f} tok/s, {row[f'{name}_gib']:.2f} GiB"
        for name in ("ours", "llama_cpp")
    ]
    print(
        f"{row['shape']} {row['precision']:9s} batch {row['batch']:3d}  {'; '.join(parts)}; ours x llama.cpp "
        f"{row['x_llama_cpp']:.2f}; same {row['same']:.2f}",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    llamas = [name for name, (family, _) in SHAPES.items() if family == "Llama"]
    parser.add_argument("--shape", choices=llamas, default="168M", help="the model's shape")
    add_names(parser, "--precisions", "precisions", TYPES, "bfloat16,float16,int8,int4")
    add_requests(parser, batches="1,8")
    parser.add_argument("--repeats", type=whole(), default=3, help="requests of each engine that are timed")
    add_profile(parser, "profiles/gpu.yaml", "quantize")
    add_out(parser)
    arguments = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama.cpp is missing: pip install llama-cpp-python")
    arguments.options = profile_block(parser, arguments.profile, "quantize")
    return arguments


if __name__ == "__main__":
    main()
