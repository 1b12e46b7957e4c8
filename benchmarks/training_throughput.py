"""Training throughput of every architecture, beside Transformers' Llama at the same shape in the same process.

    python benchmarks/training_throughput.py --shape paper --sequence 8192 --batch 1 --out throughput.csv

The baseline is Transformers' Llama under torch.compile with fused AdamW, autocast to bfloat16, and the same batch,
gradient clipping and number of steps. Tokens are random: speed does not depend on them. A row that fails (out of
memory, for example) says so, and the others go on.

With `--kernels` each row is followed by the time that a step's kernels take, by kind. `--layers` changes the depth: with two
layers and `--steps 1` everything is compiled once, into the caches that a later run in full depth reads.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from command_line import (
    add_model_and_batch,
    add_out,
    add_timed_steps,
    add_traceback,
    new_parser,
    require_known,
    several,
)
from devices import name_of, release
from kernel_times import kernels_of, print_kernel_times
from shapes import SHAPES, config_of, training_settings
from table import Row, failure, ratio, shown, write_table

from efficientllm.config.load import load
from efficientllm.config.schema import Architecture
from efficientllm.device import autocast_type, select_device, synchronize
from efficientllm.distributed.totals import peak_gib
from efficientllm.measurement.utilization import peak_flops
from efficientllm.models.accounting import count_parameters, flops_per_token
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.training.optimizer import parameter_groups
from efficientllm.training.trainer import Trainer, TrainingTask

_BASELINE = "Transformers Llama"
_EXTRA = {
    "nsa_original": Architecture(size="medium", block="pre_norm", mixer="nsa", position="rope", feedforward="swiglu"),
    "mha": Architecture(size="medium", block="pre_norm", mixer="mha", position="rope", feedforward="swiglu"),
    "no_position": Architecture(size="medium", block="pre_norm", mixer="gqa", position="none", feedforward="swiglu"),
}


def main() -> None:
    """Runs the baseline and the chosen rows, and prints one line for each."""
    arguments = _arguments()
    device = select_device()
    choices = _choices()
    dense = config_of(arguments.shape, "dense_medium", choices["dense_medium"], arguments.sequence)
    rows: list[tuple[str, DecoderConfig | None]] = [] if arguments.no_baseline else [(_BASELINE, None)]
    rows += [(name, config_of(arguments.shape, name, choices[name], arguments.sequence)) for name in arguments.rows]
    if arguments.layers:
        dense = dataclasses.replace(dense, layers=arguments.layers)
        rows = [(name, config and dataclasses.replace(config, layers=arguments.layers)) for name, config in rows]
    results: list[Row] = []
    for name, config in rows:
        release(device)
        row: Row = {"row": name, "sequence": arguments.sequence, "batch": arguments.batch}
        try:
            step, kernels = _baseline(dense, arguments, device) if config is None else _ours(config, arguments, device)
            row |= _timed(step, config or dense, arguments, device)
            row["kernels"] = kernels
        except Exception as error:  # a row that fails is a result too
            row["failure"] = failure(error)
            if arguments.traceback:
                raise
        results.append(row)
        _print(row, results)
        if arguments.kernels and "failure" not in row:
            print_kernel_times(lambda step=step: step(0), device)  # type: ignore[misc]
        step = None  # type: ignore[assignment]
        if arguments.out:
            write_table(arguments.out, results)


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_model_and_batch(parser, SHAPES, shape="medium", sequence=2048, batch=8)
    parser.add_argument(
        "--rows",
        type=several(str),
        help=f"pretraining runs of params.yaml, {', '.join(_EXTRA)}; default: all of params.yaml",
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave out the row of Transformers' Llama")
    add_timed_steps(parser, warmup=4, steps=15)
    parser.add_argument(
        "--kernels", action="store_true", help="also print what a step's kernels take, by kind, on a GPU"
    )
    add_traceback(parser)
    add_out(parser)
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or list(load().parameters.architectures)
    require_known(parser, "--rows", arguments.rows, _choices())
    return arguments


def _choices() -> dict[str, Architecture]:
    return {**load().parameters.architectures, **_EXTRA}


def _tokens(config: DecoderConfig, arguments: argparse.Namespace, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, arguments.sequence + 1)
    return torch.randint(config.vocabulary_size, shape, generator=generator).to(device)


def _ours(
    config: DecoderConfig, arguments: argparse.Namespace, device: torch.device
) -> tuple[Callable[[int], Any], str]:
    torch.manual_seed(0)
    decoder = build_decoder(config, device=device).train()
    settings = training_settings(arguments, batch_size=arguments.batch)
    tokens = _tokens(config, arguments, device)
    task = TrainingTask(
        decoder, decoder, lambda index: (tokens[:, :-1], tokens[:, 1:]), lambda: 0.0,
        lambda: parameter_groups(decoder, settings), learning_rate=1e-4,
    )  # fmt: skip
    trainer = Trainer(task, settings, device)
    return trainer.step, kernels_of(trainer)


def _baseline(
    config: DecoderConfig, arguments: argparse.Namespace, device: torch.device
) -> tuple[Callable[[int], Any], str]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocabulary_size, hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size, num_hidden_layers=config.layers,
                num_attention_heads=config.heads, num_key_value_heads=config.key_value_heads,
                max_position_embeddings=arguments.sequence, tie_word_embeddings=config.tie_embeddings,
                attn_implementation="sdpa", use_cache=False,
            )
        )  # fmt: skip
    model.train()
    if arguments.recompute:
        model.gradient_checkpointing_enable()
    compiled = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = _tokens(config, arguments, device)[:, :-1]
    autocast = autocast_type("auto", device)

    def step(index: int) -> None:
        del index
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, "scaled_dot_product_attention; torch.compile of the whole model"


def _timed(
    step: Callable[[int], Any], config: DecoderConfig, arguments: argparse.Namespace, device: torch.device
) -> Row:
    started = time.perf_counter()
    for index in range(arguments.warmup):
        step(index)
    synchronize(device)
    warmup = time.perf_counter() - started
    times = []
    for index in range(arguments.steps):
        before = time.perf_counter()
        step(arguments.warmup + index)
        synchronize(device)
        times.append(time.perf_counter() - before)
    seconds = sorted(times)[len(times) // 2]
    tokens = arguments.batch * arguments.sequence
    operations = flops_per_token(config, range(1, arguments.sequence + 1), training=True)
    name = name_of(device)
    dtype = autocast_type("auto", device) or torch.float32
    peak = peak_flops(name, str(dtype).removeprefix("torch."))
    counts = count_parameters(config)
    return {
        "parameters": counts.total,
        "active": counts.active,
        "step_ms": 1000 * seconds,
        "spread": (max(times) - min(times)) / seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": None if peak is None else 100 * operations * tokens / seconds / peak,
        "peak_gib": peak_gib(device),
        "warmup_s": warmup,
        "device": name,
    }


def _print(row: Row, results: list[Row]) -> None:
    if "failure" in row:
        print(f"{row['row']:20s} failed: {row['failure']}", flush=True)
        return
    times = {
        name: shown(ratio(row, results, "tokens_per_second", row=name), ".2f") for name in (_BASELINE, "dense_medium")
    }
    print(
        f"{row['row']:20s} {row['active'] / 1e6:7.1f}M {row['step_ms']:8.1f} ms (spread {row['spread']:4.0%}) "
        f"{row['tokens_per_second']:9.0f} tok/s  MFU {shown(row['mfu'], '.1f'):>4s} %  {shown(row['peak_gib'], '.1f'):>5s} "
        f"GiB  x baseline {times[_BASELINE]:>5s}  x dense_medium {times['dense_medium']:>5s}  warm-up "
        f"{row['warmup_s']:.0f} s  [{row['kernels']}]",
        flush=True,
    )


if __name__ == "__main__":
    main()
