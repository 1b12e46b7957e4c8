"""Throughput, memory and energy of every tuning method, beside Transformers' Trainer with PEFT's LoRA in the same process.

    python benchmarks/tuning_throughput.py --shapes Llama-3.2-1B,Qwen2.5-7B --batch 1 --out tuning.csv

Our rows are trained as the pipeline's measure stage trains them: the method's own `prepare` on the base's type, one
`Trainer.step` per call, compiled blocks and autocast on a GPU. The baseline is Transformers' own model of the same shape in
the same type, scaled-dot-product attention, PEFT's LoRA with the same rank, scale and dropout, and `transformers.Trainer`
with fused AdamW, bfloat16 autocast, and neither logging nor checkpoints. All rows see the same number of sequences of the
same length, all of whose tokens bear loss; weights and tokens are random, for speed does not depend on them.

Time and energy are taken over one window of steady steps of at least --seconds, after --warmup steps; energy is NVML's
counter, and empty without one. A row that fails (out of memory, for example) prints its reason, and the others go on. With
--out the table is written after each row, so that a run that is cut short keeps what it has.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from command_line import (
    add_names,
    add_out,
    add_profile,
    add_recompute,
    add_traceback,
    new_parser,
    not_negative,
    one_of,
    profile_block,
    several,
    whole,
)
from devices import meters_of, name_of, release
from kernel_times import kernels_of
from serving_engines import SHAPES
from steady_window import SteadyWindow
from table import Row, failure, ratio, shown, write_table

from efficientllm.config.load import load
from efficientllm.config.schema import TuneSettings, TuningTrainingSettings
from efficientllm.device import select_device, synchronize
from efficientllm.distributed.totals import peak_gib
from efficientllm.measurement.memory import GIB
from efficientllm.models.imports import imported_config
from efficientllm.models.weights import save_random
from efficientllm.registry import method_keys
from efficientllm.training.optimizer import state_bytes
from efficientllm.training.trainer import Trainer, TrainingTask
from efficientllm.tuning.method import tuning_method
from efficientllm.tuning.peft_method import low_rank_config

_BASELINE = "Transformers"


def main() -> None:
    """Runs the baseline and the chosen methods at the chosen shapes, and prints a line for each."""
    arguments = _arguments()
    device = select_device()
    nvml, name = meters_of(device), name_of(device)
    print(f"{name}: batch {arguments.batch}, sequence {arguments.sequence}, base in {arguments.tune.base_type}")
    results: list[Row] = []
    for shape in arguments.shapes:
        for method in arguments.methods:
            row: Row = {"device": name, "shape": shape, "row": method}
            row |= {"batch": arguments.batch, "sequence": arguments.sequence, "recompute": arguments.recompute}
            row["held_gib"] = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else None
            window = SteadyWindow(arguments.warmup, arguments.seconds, device, nvml)
            try:
                if method == _BASELINE:
                    row |= _baseline(shape, arguments, device, window)
                else:
                    row |= _ours(shape, method, arguments, device, window)
                row |= _figures(window, arguments)
            except Exception as error:  # a row that fails is a result too
                row |= {"failure": failure(error), "peak_gib": peak_gib(device)}
                if arguments.traceback:
                    raise
            release(device)
            results.append(row)
            _print(row, results)
            if arguments.out:
                write_table(arguments.out, results)


def _ours(
    shape: str, method: str, arguments: argparse.Namespace, device: torch.device, window: SteadyWindow
) -> dict[str, Any]:
    """Trains by the pipeline's own path until the window is full."""
    settings, implementation = arguments.training, tuning_method(method)
    options = implementation.options(arguments.tune.methods[method])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_random(Path(folder), imported_config(_transformers_config(shape, arguments.sequence)), seed=0)
        torch.manual_seed(0)
        model = implementation.prepare(Path(folder), options, device=device, dtype=_base_type(arguments))
    tokens = _tokens(shape, arguments)
    task = TrainingTask(
        model=model.module,
        decoder=model.decoder,
        batch=lambda index: (tokens[:, :-1], tokens[:, 1:]),
        evaluate=lambda: 0.0,
        groups=lambda: implementation.groups(model, options, settings),
        learning_rate=arguments.tune.methods[method].learning_rate.small,
    )
    trainer = Trainer(task, settings, device)
    model.module.train()
    synchronize(device)
    prepared = time.perf_counter() - started
    while True:
        result = trainer.step(settings.warmup_steps)  # at the schedule's peak, as the measure stage does
        if window.is_full():
            break
    return {
        **_trained(model.module, trainer.optimizer),
        "loss": _finite(float(result.loss)),
        "prepare_s": prepared,
        "kernels": kernels_of(trainer),
    }


def _baseline(shape: str, arguments: argparse.Namespace, device: torch.device, window: SteadyWindow) -> dict[str, Any]:
    """Trains LoRA by Transformers' Trainer and PEFT until the window is full."""
    import transformers
    from peft import get_peft_model
    from torch.utils.data import Dataset

    tune, settings, on_gpu = arguments.tune, arguments.training, device.type == "cuda"
    started = time.perf_counter()
    config = _transformers_config(shape, arguments.sequence)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(_base_type(arguments))
    try:
        with torch.device(device):
            model = getattr(transformers, f"{SHAPES[shape][0]}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)
    adapted = get_peft_model(model, low_rank_config(tuning_method("lora").options(tune.methods["lora"])))
    tokens = _tokens(shape, arguments)[:, :-1]

    class Sequences(Dataset[dict[str, torch.Tensor]]):
        """More of the same sequences than are ever asked for."""

        def __len__(self) -> int:
            return 10_000 * len(tokens)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            sequence = tokens[index % len(tokens)]
            return {"input_ids": sequence, "labels": sequence}

    class Watch(transformers.TrainerCallback):
        """Ends the training when the window is full."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Called after each optimizer step."""
            control.should_training_stop = window.is_full()

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=adapted,
            args=transformers.TrainingArguments(
                output_dir=folder, per_device_train_batch_size=arguments.batch, max_steps=10_000, bf16=on_gpu,
                use_cpu=not on_gpu, optim="adamw_torch_fused", learning_rate=tune.methods["lora"].learning_rate.small,
                lr_scheduler_type="constant", adam_beta1=settings.beta1, adam_beta2=settings.beta2,
                weight_decay=settings.weight_decay, max_grad_norm=settings.gradient_clip, save_strategy="no",
                logging_strategy="no", report_to="none", disable_tqdm=True, seed=0,
                **({"gradient_checkpointing": True} if arguments.recompute else {}),
            ),
            train_dataset=Sequences(),
            callbacks=[Watch()],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        synchronize(device)
        prepared = time.perf_counter() - started
        loss = trainer.train().training_loss
        trained = _trained(adapted, trainer.optimizer)
    return {**trained, "loss": _finite(loss), "prepare_s": prepared, "kernels": "eager; scaled_dot_product_attention"}


def _transformers_config(shape: str, sequence: int) -> Any:
    import transformers

    family, fields = SHAPES[shape]
    return getattr(transformers, f"{family}Config")(
        **fields, max_position_embeddings=max(2048, sequence), use_cache=False, attn_implementation="sdpa",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip


def _base_type(arguments: argparse.Namespace) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, arguments.tune.base_type)
    return dtype


def _tokens(shape: str, arguments: argparse.Namespace) -> torch.Tensor:
    """Sequences `[B, T + 1]` in host memory, as the pipeline's are."""
    size = (arguments.batch, arguments.sequence + 1)
    return torch.randint(SHAPES[shape][1]["vocab_size"], size, generator=torch.Generator().manual_seed(0))


def _trained(module: torch.nn.Module, optimizer: Any) -> dict[str, Any]:
    """What is trained, and what the optimizer keeps of it."""
    return {
        "trainable": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        "optimizer_gib": state_bytes(getattr(optimizer, "optimizer", optimizer)) / GIB,  # accelerate wraps its own
    }


def _finite(loss: float) -> float:
    if not abs(loss) < float("inf"):
        raise ArithmeticError(f"the loss is {loss}: this row did not train")
    return loss


def _figures(window: SteadyWindow, arguments: argparse.Namespace) -> dict[str, float | None]:
    seconds, joules = window.values["step_s"], window.values["joules_per_step"]
    assert seconds is not None
    return {
        **window.values,
        "samples_per_second": arguments.batch / seconds,
        "tokens_per_second": arguments.batch * arguments.sequence / seconds,
        "joules_per_sample": joules and joules / arguments.batch,
    }


def _print(row: Row, results: list[Row]) -> None:
    head = f"{row['shape']:13s} {row['row']:12s}"
    if "failure" in row:
        print(f"{head} failed at {shown(row.get('peak_gib'), '.1f')} GiB: {row['failure']}", flush=True)
        return
    for key in ("samples_per_second", "joules_per_sample", "peak_gib"):
        row[f"{key}_over_baseline"] = ratio(row, results, key, shape=row["shape"], row=_BASELINE)
    row["step_s_over_lora"] = ratio(row, results, "step_s", shape=row["shape"], row="lora")
    print(
        f"{head} {row['step_s']:8.4f} s/step {row['samples_per_second']:8.2f} samples/s "
        f"{row['tokens_per_second']:9.0f} tok/s  peak {shown(row['peak_gib'], '5.1f')} GiB "
        f"{shown(row['watts'], '4.0f')} W {shown(row['joules_per_sample'], '8.2f')} J/sample  x baseline: samples/s "
        f"{shown(row['samples_per_second_over_baseline'], '.2f')}, J {shown(row['joules_per_sample_over_baseline'], '.2f')}, "
        f"GiB {shown(row['peak_gib_over_baseline'], '.2f')}  x LoRA: step {shown(row['step_s_over_lora'], '.2f')}  "
        f"[{row['trainable'] / 1e6:.1f}M trained, optimizer {row['optimizer_gib']:.2f} GiB, {row['steps']} steps, made in "
        f"{row['prepare_s']:.0f} s, warm-up {row['warmup_s'] - row['prepare_s']:.0f} s, loss {row['loss']:.2f}]",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_names(parser, "--shapes", "models' shapes", SHAPES, "Llama-3.2-1B,Qwen2.5-7B")
    parser.add_argument(
        "--methods",
        type=several(one_of(method_keys())),
        help=f"methods, of {', '.join(method_keys())}; default: those of params.yaml",
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave out the row of Transformers' Trainer")
    parser.add_argument("--batch", type=whole(), default=1, help="sequences of a step, the same for every row")
    parser.add_argument("--sequence", type=whole(), default=2048, help="tokens of a sequence")
    parser.add_argument("--seconds", type=not_negative, default=5.0, help="shortest window of time and energy")
    parser.add_argument("--warmup", type=whole(), default=4, help="untimed steps before the window; the first compiles")
    add_recompute(parser)
    add_profile(parser, "profiles/paper.yaml", "tune")
    add_traceback(parser)
    add_out(parser)
    arguments = parser.parse_args()
    arguments.methods = arguments.methods or list(load().parameters.methods)
    if not arguments.no_baseline:
        arguments.methods = [_BASELINE, *arguments.methods]
    arguments.tune = TuneSettings.model_validate(profile_block(parser, arguments.profile, "tune"))
    arguments.training = TuningTrainingSettings.model_validate(
        arguments.tune.training.model_dump()
        | {
            "sequence_length": arguments.sequence,
            "batch_size": arguments.batch,
            "batch_sizes": None,
            "gradient_accumulation": 1,
            "recompute_activations": arguments.recompute,
        }
    )
    return arguments


if __name__ == "__main__":
    main()
