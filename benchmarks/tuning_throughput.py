"""Throughput, memory and energy of every tuning method, beside Transformers' Trainer with PEFT's LoRA in the same process.

    python benchmarks/tuning_throughput.py --shapes Llama-3.2-1B,Qwen2.5-7B --batch 1 --csv tuning.csv

Our rows are trained as the pipeline's measure stage trains them: the method's own `prepare` on the base's type, one
`Trainer.step` per call, compiled blocks and autocast on a GPU. The baseline is Transformers' own model of the same shape in
the same type, scaled-dot-product attention, PEFT's LoRA with the same rank, scale and dropout, and `transformers.Trainer`
with fused AdamW, bfloat16 autocast, and neither logging nor checkpoints. All rows see the same number of sequences of the
same length, all of whose tokens bear loss; weights and tokens are random, for speed does not depend on them.

Time and energy are taken over one window of steady steps of at least --seconds, after --warmup steps; energy is NVML's
counter, and empty without one. A row that fails (out of memory, for example) prints its reason, and the others go on. With
--csv the table is written after each row, so that a run that is cut short keeps what it has.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from csv_table import write_table
from release import release
from serving_engines import SHAPES

from efficientllm.config.load import load, read_yaml
from efficientllm.config.schema import TuneSettings, TuningTrainingSettings
from efficientllm.device import select_device, synchronize
from efficientllm.errors import MeasurementError
from efficientllm.measurement.memory import GIB
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.models.imports import imported_config
from efficientllm.models.weights import save_random
from efficientllm.registry import method_keys
from efficientllm.training.optimizer import state_bytes
from efficientllm.training.trainer import Trainer, TrainingTask
from efficientllm.tuning.method import tuning_method
from efficientllm.tuning.peft_method import low_rank_config

BASELINE = "Transformers"
_STEPS_BETWEEN_WAITS = 3  # so that the device is never idle, and the host does not run ahead of the clock


class SteadyWindow:
    """Lets warm-up steps pass, then takes time, energy and memory until the window is long enough.

    Args:
        warmup: Steps before the window.
        seconds: Its shortest length.
        device: Where the steps run.
        nvml: The GPU's meters, where there is one.
    """

    def __init__(self, warmup: int, seconds: float, device: torch.device, nvml: NvmlDevice | None) -> None:
        self._warmup, self._least, self._device, self._nvml = warmup, seconds, device, nvml
        self._created = time.perf_counter()
        self._steps = -warmup
        self._started = 0.0
        self._counter: float | None = None
        self.values: dict[str, float | None] = {}

    def is_full(self) -> bool:
        """To be asked after every step; True once the figures are in `values`."""
        self._steps += 1
        if self._steps == 0:
            synchronize(self._device)
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            self._counter = self._joules()
            self._started = time.perf_counter()
        if self._steps <= 0 or self._steps % _STEPS_BETWEEN_WAITS:
            return False
        synchronize(self._device)
        seconds = time.perf_counter() - self._started
        if seconds < self._least:
            return False
        after, before = self._joules(), self._counter
        joules = None if before is None or after is None or after <= before else after - before
        self.values = {
            "steps": self._steps,
            "step_s": seconds / self._steps,
            "watts": joules and joules / seconds,
            "joules_per_step": joules and joules / self._steps,
            "peak_gib": torch.cuda.max_memory_allocated(self._device) / GIB if self._device.type == "cuda" else None,
            "warmup_s": self._started - self._created,
        }
        return True

    def _joules(self) -> float | None:
        return None if self._nvml is None else self._nvml.joules()


def main() -> None:
    """Runs the baseline and the chosen methods at the chosen shapes, and prints a line for each."""
    arguments = _arguments()
    device = select_device()
    nvml = None
    if device.type == "cuda":
        try:
            nvml = NvmlDevice.of(device)
        except MeasurementError as error:
            print(f"no energy: {error}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}: batch {arguments.batch}, sequence {arguments.sequence}, base in {arguments.tune.base_type}")
    results: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        for method in arguments.methods:
            row: dict[str, Any] = {"device": name, "shape": shape, "row": method}
            row |= {"batch": arguments.batch, "sequence": arguments.sequence, "recompute": arguments.recompute}
            row["held_gib"] = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else None
            window = SteadyWindow(arguments.warmup, arguments.seconds, device, nvml)
            try:
                if method == BASELINE:
                    row |= _baseline(shape, arguments, device, window)
                else:
                    row |= _ours(shape, method, arguments, device, window)
                row |= _figures(window, arguments)
            except Exception as error:  # a row that fails is a result too
                row["failure"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
                if device.type == "cuda":
                    row["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
                if arguments.traceback:
                    raise
            release(device)
            results.append(row)
            _print(row, results)
            if arguments.csv:
                write_table(Path(arguments.csv), results)


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
        "kernels": "; ".join(f"{part}: {name}" for part, name in trainer.kernels().items() if name != "plain PyTorch"),
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


def _print(row: dict[str, Any], results: list[dict[str, Any]]) -> None:
    def ratio(name: str, key: str) -> float | None:
        """This row's figure over another's at the same shape."""
        found = next((other for other in results if (other["shape"], other["row"]) == (row["shape"], name)), {})
        return None if row.get(key) is None or found.get(key) is None else row[key] / found[key]

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = f"{row['shape']:13s} {row['row']:12s}"
    if "failure" in row:
        print(f"{head} failed at {shown(row.get('peak_gib'), '.1f')} GiB: {row['failure']}", flush=True)
        return
    for key in ("samples_per_second", "joules_per_sample", "peak_gib"):
        row[f"{key}_over_baseline"] = ratio(BASELINE, key)
    row["step_s_over_lora"] = ratio("lora", "step_s")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", "--shape", default="Llama-3.2-1B,Qwen2.5-7B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--methods", help=f"of {', '.join(method_keys())}; default: those of params.yaml")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step, the same for every row")
    parser.add_argument("--sequence", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--seconds", type=float, default=5.0, help="shortest window of time and energy")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the window; the first one compiles")
    parser.add_argument(
        "--recompute", action="store_true", help="recompute activations in the backward pass, in every row"
    )
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument(
        "--profile", default="profiles/paper.yaml", help="whose block `tune` holds the methods' parameters"
    )
    parser.add_argument("--traceback", action="store_true", help="stop at the first failure")
    parser.add_argument("--csv", help="also write the table there")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",") if arguments.methods else list(load().parameters.methods)
    for name, chosen, known in (
        ("shapes", arguments.shapes.split(","), list(SHAPES)),
        ("methods", methods, method_keys()),
    ):
        setattr(arguments, name, chosen)
        if unknown := [value for value in chosen if value not in known]:
            parser.error(f"--{name}: {unknown[0]!r} is none of {', '.join(known)}")
    if not arguments.no_baseline:
        arguments.methods = [BASELINE, *arguments.methods]
    arguments.tune = TuneSettings.model_validate(read_yaml(Path(arguments.profile))["tune"])
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
