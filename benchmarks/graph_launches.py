"""Decoding by recorded steps at the two speeds at which a GPU's driver launches them: behind a recording, and behind a second context.

The baseline is the same engine of the same process, behind a recording of something else; `x` is how many times as fast it decodes
once a second CUDA context has been made and given back. Medians of the times between tokens.

    python benchmarks/graph_launches.py --shapes 168M,1B --batches 1,8
"""

import argparse
import functools
import itertools
import statistics

import torch
from command_line import add_names, add_out, add_requests, new_parser
from devices import release
from serving_engines import SHAPES, make_model
from table import Row, shown, write_table

from efficientllm.device import select_device
from efficientllm.models.cuda_graphs import record
from efficientllm.models.second_context import speed_up_replays
from efficientllm.serving.engine import GreedyEngine

_CALLS = 5


def main() -> None:
    """Prints a row for each shape and batch, and writes the table if asked to."""
    arguments, rows = _arguments(), list[Row]()
    device = select_device()
    for shape in arguments.shapes:
        model = make_model(shape, "bfloat16", "ours", arguments.prompt + arguments.output, {}, device)
        for batch in arguments.batches:
            row: Row = {"shape": shape, "batch": batch}
            row |= _measured(GreedyEngine(model, batch, arguments.prompt, arguments.output), device)
            rows.append(row)
            print(
                f"{shape:>5}  batch {batch:3d}  behind a recording {row['recorded_us']:.1f} us  behind a second context "
                f"{shown(row.get('second_context_us'), '.1f')} us  x {shown(row.get('x'), '.2f')}  "
                f"[{row.get('failure', row['execution'])}]",
                flush=True,
            )
        del model
        release(device)
    if arguments.out:
        write_table(arguments.out, rows)


def _measured(engine: GreedyEngine, device: torch.device) -> Row:
    """Microseconds a token behind a recording, and behind a second context or why there was none."""
    prompts = torch.ones(engine.cache.batch_size, engine.prompt_length, dtype=torch.long, device=device)
    engine.generate(prompts)
    if device.type == "cuda":
        record([functools.partial(torch.zeros(1, device=device).add_, 1)], device)
    recorded = _microseconds(engine, prompts)
    obstacle = speed_up_replays(device)
    if obstacle is not None:
        return {"recorded_us": recorded, "failure": f"no second context: {obstacle}", "execution": engine.execution}
    behind = _microseconds(engine, prompts)
    return {
        "recorded_us": recorded, "second_context_us": behind, "x": recorded / behind, "execution": engine.execution
    }  # fmt: skip


def _microseconds(engine: GreedyEngine, prompts: torch.Tensor) -> float:
    """Between two tokens."""
    found = list[float]()
    for _ in range(_CALLS):
        times = engine.generate(prompts, time_tokens=True).token_times
        found += [later - earlier for earlier, later in itertools.pairwise(times)]
    return statistics.median(found) * 1e6


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_names(parser, "--shapes", "models of random weights in bfloat16", SHAPES, default="168M,1B")
    add_requests(parser, batches="8")
    add_out(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
