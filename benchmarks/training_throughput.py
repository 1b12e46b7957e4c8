"""Training throughput of every architecture, beside Transformers' Llama at the same shape in the same process.

    python benchmarks/training_throughput.py --shape paper --sequence 8192 --batch 1 --csv throughput.csv

The baseline is Transformers' Llama under torch.compile with fused AdamW, autocast to bfloat16, and the same batch,
gradient clipping and number of steps. Tokens are random: speed does not depend on them. A row that fails (out of
memory, for example) says so, and the others go on.

With `--profile` each row is followed by the time that a step's kernels take, by kind. `--layers` changes the depth: with two
layers and `--steps 1` everything is compiled once, into the caches that a later run in full depth reads.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from csv_table import write_table
from kernel_times import print_kernel_times
from release import release
from shapes import SHAPES, config_of

from efficientllm.config.load import load
from efficientllm.config.schema import Architecture, TrainingSettings
from efficientllm.device import autocast_type, select_device, synchronize
from efficientllm.measurement.utilization import peak_flops
from efficientllm.models.accounting import count_parameters, flops_per_token, mean_causal_context
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.training.optimizer import parameter_groups
from efficientllm.training.trainer import Trainer, TrainingTask

_EXTRA = {
    "nsa_original": Architecture(size="medium", block="pre_norm", mixer="nsa", position="rope", feedforward="swiglu"),
    "mha": Architecture(size="medium", block="pre_norm", mixer="mha", position="rope", feedforward="swiglu"),
    "no_position": Architecture(size="medium", block="pre_norm", mixer="gqa", position="none", feedforward="swiglu"),
}


def main() -> None:
    """Runs the baseline and the chosen rows, and prints one line for each."""
    arguments = _arguments()
    device = select_device()
    choices = {**load().parameters.architectures, **_EXTRA}
    dense = config_of(arguments.shape, "dense_medium", choices["dense_medium"], arguments.sequence)
    rows: list[tuple[str, DecoderConfig | None]] = [] if arguments.no_baseline else [("Transformers Llama", None)]
    names = arguments.rows.split(",") if arguments.rows else list(load().parameters.architectures)
    rows += [(name, config_of(arguments.shape, name, choices[name], arguments.sequence)) for name in names]
    if arguments.layers:
        dense = dataclasses.replace(dense, layers=arguments.layers)
        rows = [(name, config and dataclasses.replace(config, layers=arguments.layers)) for name, config in rows]
    results: list[dict[str, Any]] = []
    for name, config in rows:
        release(device)
        row: dict[str, Any] = {"row": name, "sequence": arguments.sequence, "batch": arguments.batch}
        try:
            step, kernels = _baseline(dense, arguments, device) if config is None else _ours(config, arguments, device)
            row |= _timed(step, config or dense, arguments, device)
            row["kernels"] = kernels
        except Exception as error:  # a row that fails is a result too
            row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            if arguments.traceback:
                raise
        results.append(row)
        _print(row, results)
        if arguments.profile and "failure" not in row:
            print_kernel_times(lambda step=step: step(0), device)  # type: ignore[misc]
        step = None  # type: ignore[assignment]
        if arguments.csv:
            write_table(Path(arguments.csv), results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="medium")
    parser.add_argument("--rows", help="comma-separated pretraining runs; default: all of params.yaml")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--checkpoint", action="store_true", help="recompute the blocks' activations")
    parser.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw", help="of our rows")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also print what a step's kernels take, by kind")
    parser.add_argument("--traceback", action="store_true", help="stop at the first failure")
    parser.add_argument("--csv", help="also write the table there")
    return parser.parse_args()


def _tokens(config: DecoderConfig, arguments: argparse.Namespace, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, arguments.sequence + 1)
    return torch.randint(config.vocabulary_size, shape, generator=generator).to(device)


def _ours(
    config: DecoderConfig, arguments: argparse.Namespace, device: torch.device
) -> tuple[Callable[[int], Any], str]:
    torch.manual_seed(0)
    decoder = build_decoder(config, device=device).train()
    settings = TrainingSettings(
        sequence_length=arguments.sequence, batch_size=arguments.batch, gradient_accumulation=1, steps=1000,
        warmup_steps=10, final_learning_rate_fraction=0.1, embedding_learning_rate_scale=1.0, weight_decay=0.1,
        beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="auto", compile="auto", evaluation_steps=1000,
        evaluation_sequences=1, checkpoint_seconds=86400.0, optimizer=arguments.optimizer,
        recompute_activations=arguments.checkpoint,
    )  # fmt: skip
    tokens = _tokens(config, arguments, device)
    task = TrainingTask(
        decoder, decoder, lambda index: (tokens[:, :-1], tokens[:, 1:]), lambda: 0.0,
        lambda: parameter_groups(decoder, settings), learning_rate=1e-4,
    )  # fmt: skip
    trainer = Trainer(task, settings, device)
    return trainer.step, "; ".join(
        f"{part}: {kernel}" for part, kernel in trainer.kernels().items() if kernel != "plain PyTorch"
    )


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
    if arguments.checkpoint:
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
) -> dict[str, Any]:
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
    operations = flops_per_token(config, mean_causal_context(arguments.sequence), training=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
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
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "warmup_s": warmup,
        "device": name,
    }


def _print(row: dict[str, Any], results: list[dict[str, Any]]) -> None:
    if "failure" in row:
        print(f"{row['row']:20s} failed: {row['failure']}", flush=True)
        return

    def ratio(name: str) -> str:
        found = next((other for other in results if other["row"] == name and "step_ms" in other), None)
        return "    -" if found is None else f"{row['tokens_per_second'] / found['tokens_per_second']:5.2f}"

    percent = "   -" if row["mfu"] is None else f"{row['mfu']:4.1f}"
    memory = "   -" if row["peak_gib"] is None else f"{row['peak_gib']:5.1f}"
    print(
        f"{row['row']:20s} {row['active'] / 1e6:7.1f}M {row['step_ms']:8.1f} ms (spread {row['spread']:4.0%}) "
        f"{row['tokens_per_second']:9.0f} tok/s  MFU {percent} %  {memory} GiB  x baseline {ratio('Transformers Llama')}"
        f"  x dense_medium {ratio('dense_medium')}  warm-up {row['warmup_s']:.0f} s  [{row['kernels']}]",
        flush=True,
    )


if __name__ == "__main__":
    main()
