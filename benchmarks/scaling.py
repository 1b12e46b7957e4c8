"""Training in several processes against training in one: tokens per second, losses, memory and joules.

    python benchmarks/scaling.py --shape paper --rows dense_medium,dense_large --sequence 8192 --processes 1,2 --out scaling.csv

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from command_line import (
    add_model_and_batch,
    add_out,
    add_timed_steps,
    new_parser,
    one_of,
    positive,
    require_known,
    several,
    whole,
)
from shapes import SHAPES
from table import Row, failure, shown, write_table

_WORK = "SCALING_WORK"
"""Variable by which a process that is to train learns what; the options it has from the same command line."""


@dataclass(frozen=True)
class _Work:
    """One row of the table.

    Args:
        row: The pretraining run.
        strategy: `none`, `ddp` or `fsdp`.
        processes: How many train.
        most: How many there are at most in this call.
        report: File for what has been measured.
    """

    row: str
    strategy: str
    processes: int
    most: int
    report: str


def main() -> None:
    """Runs every row, and prints a line for each."""
    arguments = _arguments()
    if os.environ.get(_WORK):
        _train(arguments, _Work(**json.loads(os.environ[_WORK])))
        return
    setups = [("none", 1), *((name, count) for name in arguments.strategies for count in arguments.processes)]
    results: list[Row] = []
    for name in arguments.rows:
        baseline: Row = {}
        for strategy, count in setups:
            row = {"row": name, "strategy": strategy, "processes": count, **_started(arguments, name, strategy, count)}
            baseline = row if strategy == "none" else baseline
            _compare(row, baseline)
            results.append(row)
            print(_line(row), flush=True)
            if arguments.out:
                write_table(arguments.out, [_flat(result) for result in results])


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_model_and_batch(parser, SHAPES, shape="medium", sequence=2048, batch=1)
    parser.add_argument("--rows", type=several(str), default="dense_medium", help="pretraining runs of params.yaml")
    parser.add_argument(
        "--strategies", type=several(one_of(("ddp", "fsdp"))), default="ddp,fsdp", help="ddp, fsdp or both"
    )
    parser.add_argument(
        "--processes", type=several(whole()), default="1,2", help="numbers of processes of each strategy"
    )
    parser.add_argument("--losses", type=whole(), default=50, help="steps whose losses are compared")
    add_timed_steps(parser, warmup=3, steps=20)
    parser.add_argument("--compile", choices=["auto", "none", "blocks"], default="auto", help="what is compiled")
    parser.add_argument("--timeout", type=positive, default=1800.0, help="seconds after which a row is given up")
    add_out(parser)
    arguments = parser.parse_args()
    if not os.environ.get(_WORK):
        from efficientllm.config.load import load

        require_known(parser, "--rows", arguments.rows, load().parameters.architectures)
    most = max(arguments.processes)
    if uneven := [count for count in arguments.processes if most % count]:
        parser.error(f"argument --processes: {uneven[0]} does not divide {most}, for equal batches: leave it out")
    return arguments


def _started(arguments: argparse.Namespace, name: str, strategy: str, count: int) -> Row:
    """Runs one row in fresh processes, and returns what the first of them has measured, or why it could not."""
    # torchrun for one process too, so that a strategy's own cost is in its row
    launcher = [] if strategy == "none" else [
        "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        "--nproc-per-node", str(count),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        work = _Work(name, strategy, count, max(arguments.processes), str(report))
        environment = {**os.environ, _WORK: json.dumps(asdict(work))}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with subprocess.Popen([sys.executable, *launcher, __file__, *sys.argv[1:]], env=environment) as process:
            try:
                process.wait(arguments.timeout)
            except subprocess.TimeoutExpired:
                process.terminate()  # not killed: torchrun would leave behind the processes that it has started
                return {"failure": f"not finished within {arguments.timeout:g} s"}
        found: Row = json.loads(report.read_text()) if report.exists() else {"failure": "it left no report"}
        return found


def _compare(row: Row, baseline: Row) -> None:
    """Adds what only the baseline makes a figure of."""
    if "losses" not in row or "losses" not in baseline:
        return
    pairs = zip(row["losses"], baseline["losses"], strict=True)
    row["largest_loss_difference"] = max(abs(one - other) for one, other in pairs)
    row["efficiency"] = row["tokens_per_second"] / (row["processes"] * baseline["tokens_per_second"])


def _flat(row: Row) -> Row:
    return row | {"losses": " ".join(f"{loss:.6f}" for loss in row.get("losses", []))}


def _line(row: Row) -> str:
    title = f"{row['row']:14s} {row['strategy']:5s} {row['processes']}"
    if "failure" in row:
        return f"{title}  failed: {row['failure']}"
    return (
        f"{title}  {row['tokens_per_second']:9.0f} tok/s  efficiency {shown(row.get('efficiency'), '.1%')}  peak "
        f"{shown(row['peak_gib'], '.1f')} GiB  {row['joules_per_token']:.4g} J/token ({row['energy_source']}), "
        f"{shown(row['counter_difference'], '+.2%')} beside the sum of NVML's counters  largest loss difference "
        f"{shown(row.get('largest_loss_difference'), '.1e')}  [{row['kernels']}]"
    )


def _train(arguments: argparse.Namespace, work: _Work) -> None:
    """What each of the processes does."""
    from efficientllm.distributed.world import joined

    report = Path(work.report)
    try:
        with nullcontext() if work.strategy == "none" else joined(work.strategy):  # type: ignore[arg-type]
            measured = _measured(arguments, work)
            if measured is not None:
                report.write_text(json.dumps(measured))
    except Exception as error:  # a row that fails is a result too
        # the first failure counts: that of the other processes is that they have lost this one
        with suppress(FileExistsError), report.open("x") as stream:
            json.dump({"failure": failure(error)}, stream)
        raise SystemExit(1) from error


def _measured(arguments: argparse.Namespace, work: _Work) -> Row | None:
    """Trains, and returns the figures in the first process."""
    from kernel_times import kernels_of

    from efficientllm.device import select_device, synchronize
    from efficientllm.distributed import world
    from efficientllm.distributed.totals import device_memory, own_joules, peak_gib
    from efficientllm.measurement.energy import EnergyMeter

    device, here = select_device(), world.current()

    def gathered(value: float | None) -> list[float | None]:
        return [value] if here is None else here.gathered(value, device)

    trainer = _trainer(arguments, work, device)
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
        "kernels": kernels_of(trainer),
        "device": meter.device_name,
    }


def _trainer(arguments: argparse.Namespace, work: _Work, device: Any) -> Any:
    """The training of one row, of which optimizer step `i` takes the same sequences in any number of processes."""
    import torch
    from shapes import config_of, training_settings

    from efficientllm.config.load import load
    from efficientllm.models.build import build_decoder
    from efficientllm.training.optimizer import parameter_groups
    from efficientllm.training.recorded_gradients import Batch
    from efficientllm.training.trainer import Trainer, TrainingTask

    torch.manual_seed(0)
    config = config_of(arguments.shape, work.row, load().parameters.architectures[work.row], arguments.sequence)
    decoder = build_decoder(replace(config, layers=arguments.layers or config.layers), device=device)
    together = arguments.batch * work.processes
    settings = training_settings(
        arguments,
        batch_size=together,
        gradient_accumulation=work.most // work.processes,
        compiled=arguments.compile,
    )

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
