"""Serving by our engine beside llama.cpp, with the same weights in the same process.

    pip install llama-cpp-python      # no dependency of this project; it compiles llama.cpp
    python benchmarks/serving_llama_cpp.py --shape 168M --precisions bfloat16,int4 --batches 1,8 --csv llama.csv

Weights are random, written as a GGUF file for llama.cpp; requests are of forced length and greedy. 16-bit weights are the same
numbers, and `same` is the share of tokens that are; random weights make near ties, which are rounded otherwise, and after one
other token all that follow are others. 8 and 4 bits are other formats on each side (LLM.int8() and NF4 here, Q8_0 and Q4_0
there) of the same nominal size. Embeddings stay in 16 bits on both sides. Times are medians of whole requests, taken by turns
after one of each that is not counted.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csv_table import write_table
from gguf_file import BFLOAT16, TYPES, write_llama
from llama_cpp_server import LlamaCpp
from serving_engines import SHAPES, make_model

from efficientllm.config.load import read_yaml
from efficientllm.device import select_device
from efficientllm.measurement.memory import GIB
from efficientllm.measurement.subjects import bytes_in_memory
from efficientllm.serving.engine import GreedyEngine


def main() -> None:
    """Serves every precision and batch by both engines."""
    arguments = _arguments()
    device = select_device()
    threads = torch.get_num_threads()
    print(f"{device}, {threads} threads of {os.cpu_count()}; prompt {arguments.prompt}, output {arguments.output}")
    rows: list[dict[str, Any]] = []
    for key in arguments.precisions.split(","):
        longest = arguments.prompt + arguments.output
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            whole = make_model(arguments.shape, "bfloat16", "generate", longest, {}, device)
            kind = TYPES[key]
            sixteen = kind if key in ("bfloat16", "float16") else BFLOAT16
            stored = write_llama(path, whole, linear=kind, embedding=sixteen)
            words = whole.config.vocab_size
            del whole
            gc.collect()
            options = read_yaml(Path("profiles/gpu.yaml"))["quantize"][key]
            decoder = make_model(arguments.shape, key, "ours", longest, options, device)
            for batch in map(int, arguments.batches.split(",")):
                shape = (batch, arguments.prompt, arguments.output)
                prompts = torch.randint(words, shape[:2], generator=torch.Generator().manual_seed(1))
                row = {
                    "shape": arguments.shape,
                    "precision": key,
                    "batch": batch,
                    "device": str(device),
                    "threads": threads,
                }
                row |= {"ours_gib": bytes_in_memory(decoder) / GIB, "llama_cpp_gib": stored / GIB}
                row |= _compared(decoder, path, prompts.to(device), arguments, threads)
                rows.append(row)
                _print(row)
                if arguments.csv:
                    write_table(Path(arguments.csv), rows)


def _compared(
    decoder: Any, path: Path, prompts: torch.Tensor, arguments: argparse.Namespace, threads: int
) -> dict[str, Any]:
    """Takes whole requests and their first tokens by turns."""
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
        tokens = {
            name: calls[name]() for name in ("ours", "llama_cpp")
        }  # not counted: memory is touched for the first time
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                if prompts.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
    finally:
        theirs.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {"same": float((tokens["ours"] == tokens["llama_cpp"]).mean())}
    for name in ("ours", "llama_cpp"):
        found[f"{name}_ttft_ms"] = 1000 * median[f"{name}_first"]
        found[f"{name}_itl_ms"] = 1000 * (median[name] - median[f"{name}_first"]) / (output - 1)
        found[f"{name}_tokens_per_second"] = batch * output / median[name]
    found["x_llama_cpp"] = found["ours_tokens_per_second"] / found["llama_cpp_tokens_per_second"]
    return found


def _print(row: dict[str, Any]) -> None:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="168M", choices=[name for name, (family, _) in SHAPES.items() if family == "Llama"]
    )
    parser.add_argument("--precisions", default="bfloat16,float16,int8,int4", help=f"of {', '.join(TYPES)}")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="requests of each engine that are timed")
    parser.add_argument("--csv", help="also write the table there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
