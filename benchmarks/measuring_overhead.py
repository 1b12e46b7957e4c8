"""What the meters cost: step time with them over step time without, in one process, window by window in random order.

    python benchmarks/measuring_overhead.py --shape tiny --sequence 128 --batch 8 --pairs 12

`time and energy` is what runs while the pipeline takes time and energy: CodeCarbon's tracker, NVML's counter, and the
sampler of the busy share. `memory` is the sampler of memory, which has a pass of its own in the pipeline. The interval is
Student's t over the pairs' ratios; one that holds 1 means that no cost was seen.
"""

import argparse
import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from command_line import add_model_and_batch, add_out, new_parser, positive, whole
from shapes import SHAPES, config_of
from table import Row, write_table

from efficientllm.config.load import load
from efficientllm.device import select_device, synchronize
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.statistics import repeats_interval
from efficientllm.measurement.utilization import UtilizationMeter
from efficientllm.models.build import build_decoder


def main() -> None:
    """Measures both kinds of meters and prints a line for each."""
    parser = new_parser(__doc__)
    add_model_and_batch(parser, SHAPES, shape="tiny", sequence=128, batch=8)
    parser.add_argument("--seconds", type=positive, default=1.0, help="shortest window")
    parser.add_argument("--pairs", type=whole(2), default=12, help="windows with the meters, each beside one without")
    add_out(parser)
    arguments = parser.parse_args()
    device = select_device()
    memory = MemoryMeter(device)
    meter = EnergyMeter(device)
    utilization = UtilizationMeter(meter.nvml)
    step = _training_step(arguments, device)
    started = time.perf_counter()
    while time.perf_counter() - started < 3 * arguments.seconds:
        step()
    synchronize(device)
    print(f"{meter.device_name}; {meter.method}; load average {os.getloadavg()[0]:.2f}")
    ratios: list[Row] = []

    @contextlib.contextmanager
    def time_and_energy() -> Iterator[None]:
        with meter.window(), utilization.window():
            yield

    for name, meters in (("time and energy", time_and_energy), ("memory", memory.window)):
        plain, found = [], []
        for pair in range(arguments.pairs):
            order = [contextlib.nullcontext, meters]
            random.Random(pair).shuffle(order)
            seconds = {kind: _seconds_per_step(step, kind, arguments.seconds, device) for kind in order}
            plain.append(seconds[contextlib.nullcontext])
            found.append(seconds[meters] / seconds[contextlib.nullcontext])
        interval = repeats_interval(found)
        assert interval is not None
        print(
            f"{name:16s} {statistics.median(found):.4f} of the plain step time, 95 % interval {interval[0]:.4f} to "
            f"{interval[1]:.4f} ({arguments.pairs} pairs of {arguments.seconds:g} s; a plain step takes "
            f"{1000 * statistics.median(plain):.2f} ms)",
            flush=True,
        )
        ratios += [{"meters": name, "ratio": ratio} for ratio in found]
        if arguments.out:
            write_table(arguments.out, ratios)


def _training_step(arguments: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """A forward and backward pass and an optimizer step of the dense medium model with random weights."""
    torch.manual_seed(0)
    config = config_of(arguments.shape, "dense_medium", load().parameters.architectures["dense_medium"])
    decoder = build_decoder(config, device=device).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(config.vocabulary_size, (arguments.batch, arguments.sequence), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = decoder(tokens).logits
        logits.float().logsumexp(dim=-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds_per_step(
    step: Callable[[], None],
    meters: Callable[[], contextlib.AbstractContextManager[object]],
    seconds: float,
    device: torch.device,
) -> float:
    steps = 0
    with meters():
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            step()
            steps += 1
            if steps % 5 == 0:
                synchronize(device)  # or the host would run ahead of the clock
        synchronize(device)
        return (time.perf_counter() - started) / steps


if __name__ == "__main__":
    main()
