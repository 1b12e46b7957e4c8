"""Training in several processes against training in one: tokens per second, losses, memory and joules.

    python benchmarks/scaling.py --shape paper --rows dense_medium,dense_large --sequence 8192 --processes 1,2 --csv scaling.csv

Each row of the table is a run of its own, in as many fresh processes as it says, one per GPU (gloo on a CPU). The baseline is the
same training in one process (`none`), in the same call. First `--losses` optimizer steps are taken on the same global batch
whatever the number of processes: few processes accumulate what many share, so the losses have to be the same up to
rounding. Then steps are timed in which each process takes `--batch` sequences. Efficiency is tokens per second by those of the
baseline times the number of processes.

Joules are CodeCarbon's of each process' own GPU, added up, beside the sum of NVML's counters, each read by its own process;
on a CPU they are modelled, and the machine counts once. Tokens are random: speed does not depend on them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from csv_table import write_table
from shapes import SHAPES

_REPORT = "SCALING_REPORT"


def main() -> None:
    """Runs every row, and prints a line for each."""
    arguments = _arguments()
    if os.environ.get(_REPORT):
        _work(arguments)
        return
    counts = [int(count) for count in arguments.processes.split(",")]
    setups = [("none", 1), *((name, count) for name in arguments.strategies.split(",") for count in counts)]
    results: list[dict[str, Any]] = []
    for name in arguments.rows.split(","):
        baseline: dict[str, Any] = {}
        for strategy, count in setups:
            row = {"row": name, "strategy": strategy, "processes": count, **_started(arguments, name, strategy, count)}
            baseline = row if strategy == "none" else baseline
            _compare(row, baseline)
            results.append(row)
            print(_line(row), flush=True)
            if arguments.csv:
                write_table(Path(arguments.csv), [_flat(result) for result in results])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="medium")
    parser.add_argument("--rows", default="dense_medium", help="comma-separated pretraining runs of params.yaml")
    parser.add_argument("--strategies", default="ddp,fsdp")
    parser.add_argument("--processes", default="1,2", help="numbers of processes of each strategy")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1, help="sequences of each process in a timed step")
    parser.add_argument("--losses", type=int, default=50, help="steps whose losses are compared")
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps before the timed ones")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw")
    parser.add_argument("--checkpoint", action="store_true", help="recompute the blocks' activations")
    parser.add_argument("--compile", choices=["auto", "none", "blocks"], default="auto")
    parser.add_argument("--seconds", type=float, default=1800, help="longest time for one row")
    parser.add_argument("--csv", help="also write the table there")
    return parser.parse_args()


def _started(arguments: argparse.Namespace, name: str, strategy: str, count: int) -> dict[str, Any]:
    """Runs one row in fresh processes, and returns what the first of them has measured, or why it could not."""
    given = [argument for key, value in vars(arguments).items() for argument in _given(key, value)]
    script = [__file__, *given, "--rows", name, "--strategies", strategy, "--processes", str(count)]
    # torchrun for one process too, so that a strategy's own cost is in its row
    launcher = [] if strategy == "none" else [
        "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        "--nproc-per-node", str(count),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        most = str(max(int(number) for number in arguments.processes.split(",")))
        environment = {**os.environ, _REPORT: str(report), "SCALING_MOST": most}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        command = [sys.executable, *launcher, *script]
        try:
            subprocess.run(command, env=environment, check=False, timeout=arguments.seconds)
        except subprocess.TimeoutExpired:
            return {"failure": f"not finished within {arguments.seconds:g} s"}
        found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {"failure": "it left no report"}
        return found


def _given(key: str, value: Any) -> list[str]:
    """An option as it is written on a command line."""
    if value is None or value is False or key == "csv":
        return []
    return [f"--{key}"] if value is True else [f"--{key}", str(value)]


def _compare(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Adds what only the baseline makes a figure of."""
    if "losses" not in row or "losses" not in baseline:
        return
    pairs = zip(row["losses"], baseline["losses"], strict=True)
    row["largest_loss_difference"] = max(abs(one - other) for one, other in pairs)
    row["efficiency"] = row["tokens_per_second"] / (row["processes"] * baseline["tokens_per_second"])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"losses": " ".join(f"{loss:.6f}" for loss in row.get("losses", []))}


def _line(row: dict[str, Any]) -> str:
    title = f"{row['row']:14s} {row['strategy']:5s} {row['processes']}"
    if "failure" in row:
        return f"{title}  failed: {row['failure']}"

    def shown(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    return (
        f"{title}  {row['tokens_per_second']:9.0f} tok/s  efficiency {shown('efficiency', '.1%')}  peak "
        f"{shown('peak_gib', '.1f')} GiB  {shown('joules_per_token', '.4g')} J/token ({row['energy_source']})  sum of "
        f"NVML's counters {shown('counter_difference', '+.2%')}  largest loss difference "
        f"{shown('largest_loss_difference', '.1e')}  [{row['kernels']}]"
    )


def _work(arguments: argparse.Namespace) -> None:
    """What each of the processes does."""
    from efficientllm.distributed.world import joined

    report = Path(os.environ[_REPORT])
    try:
        with nullcontext() if arguments.strategies == "none" else joined(arguments.strategies):
            measured = _measured(arguments)
            if measured is not None:
                report.write_text(json.dumps(measured))
    except Exception as error:  # a row that fails is a result too
        message = str(error).splitlines()[0][:200] if str(error) else ""
        # the first failure counts: that of the other processes is that they have lost this one
        with suppress(FileExistsError), report.open("x") as stream:
            json.dump({"failure": f"{type(error).__name__}: {message}"}, stream)
        raise SystemExit(1) from error


def _measured(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Trains, and returns the figures in the first process."""
    from efficientllm.device import select_device, synchronize
    from efficientllm.distributed import world
    from efficientllm.distributed.totals import device_memory, own_joules, peak_gib
    from efficientllm.measurement.energy import EnergyMeter

    device, here = select_device(), world.current()

    def gathered(value: float | None) -> list[float | None]:
        return [value] if here is None else here.gathered(value, device)

    trainer = _trainer(arguments, device, int(os.environ["SCALING_MOST"]))
    losses = [float(trainer.step(index).loss) for index in range(arguments.losses)]
    trainer.settings = trainer.settings.model_copy(update={"gradient_accumulation": 1})
    meter = EnergyMeter(device)
    for index in range(arguments.warmup):
        trainer.step(arguments.losses + index)
    synchronize(device)
    gathered(0.0)  # all start together
    times = []
    with meter.window() as energy:
        for index in range(arguments.steps):
            before = time.perf_counter()
            result = trainer.step(arguments.losses + arguments.warmup + index)
            synchronize(device)
            times.append(time.perf_counter() - before)
    joules = gathered(energy.joules if here is None else own_joules(energy.joules, here, device))
    counters, peaks = gathered(energy.counter_joules), device_memory(gathered(peak_gib(device)))
    seconds = max(value or 0.0 for value in gathered(statistics.median(times)))
    if not world.is_first():
        return None
    sum_joules = sum(value or 0.0 for value in joules)
    sum_counters = None if None in counters else sum(value or 0.0 for value in counters)
    return {
        "sequence": arguments.sequence,
        "batch_per_process": arguments.batch,
        "step_ms": 1000 * seconds,
        "spread": (max(times) - min(times)) / seconds,
        "tokens_per_second": result.tokens / seconds,
        "peak_gib": None if peaks is None else peaks.highest,
        "peak_gib_mean": None if peaks is None else peaks.mean,
        "joules": sum_joules,
        "joules_of_each": " ".join(f"{value:.1f}" for value in joules if value is not None),
        "counter_joules": sum_counters,
        "counter_difference": None if not sum_counters else sum_joules / sum_counters - 1,
        "joules_per_token": sum_joules / (arguments.steps * result.tokens),
        "energy_source": meter.source,
        "losses": losses,
        "kernels": "; ".join(f"{part}: {name}" for part, name in trainer.kernels().items() if name != "plain PyTorch"),
        "device": meter.device_name,
    }


def _trainer(arguments: argparse.Namespace, device: Any, most: int) -> Any:
    """The training of one row, of which optimizer step `i` takes the same sequences in any number of processes."""
    import dataclasses

    import torch
    from shapes import config_of

    from efficientllm.config.load import load
    from efficientllm.config.schema import TrainingSettings
    from efficientllm.models.build import build_decoder
    from efficientllm.training.optimizer import parameter_groups
    from efficientllm.training.trainer import Batch, Trainer, TrainingTask

    torch.manual_seed(0)
    config = config_of(
        arguments.shape, arguments.rows, load().parameters.architectures[arguments.rows], arguments.sequence
    )
    decoder = build_decoder(dataclasses.replace(config, layers=arguments.layers or config.layers), device=device)
    together = arguments.batch * int(arguments.processes)
    settings = TrainingSettings(
        sequence_length=arguments.sequence, batch_size=together, steps=10_000, warmup_steps=10,
        gradient_accumulation=most // int(arguments.processes), final_learning_rate_fraction=0.1,
        embedding_learning_rate_scale=1.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="auto",
        compile=arguments.compile, evaluation_steps=10_000, evaluation_sequences=1, checkpoint_seconds=86400.0,
        optimizer=arguments.optimizer, recompute_activations=arguments.checkpoint,
    )  # fmt: skip

    def sequence(index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(config.vocabulary_size, (arguments.sequence + 1,), generator=generator)

    def batch(index: int) -> Batch:
        rows = torch.stack([sequence(index * together + row) for row in range(together)])
        return rows[:, :-1], rows[:, 1:]

    task = TrainingTask(
        decoder.train(), decoder, batch, lambda: 0.0, lambda: parameter_groups(decoder, settings), learning_rate=1e-4
    )
    return Trainer(task, settings, device)


if __name__ == "__main__":
    main()
