"""Serving in each precision by our engine, beside Transformers' `generate` with the same weights in the same process.

    python benchmarks/serving.py --shapes Llama-3.2-1B --precisions bfloat16,int4 --batches 1,8 --out serving.csv

Three engines serve the same requests, of forced length and greedily: `ours`; `generate`, Transformers with its default
cache; and `static`, Transformers with a static cache, which it compiles on a GPU (mode reduce-overhead). Weights are random
and made on the device from one seed, so that nothing is read from a disk and all engines have the same: `same` is the share
of generated tokens that equal ours, which is below 1 where near ties are rounded otherwise.

A combination that fails (out of memory, a kernel that is missing) prints its reason, and the others go on. With --out the
table is written after each row, and a run that was cut short goes on with the rows that are missing, on a device of the same
name alone. J/token, and the GPU's busy share and mean clock while requests are served, need NVML and are empty without it.
`roof` is the share of the measured copy bandwidth at which a decoding step reads what it must read.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from command_line import (
    add_names,
    add_out,
    add_profile,
    add_requests,
    add_traceback,
    new_parser,
    not_negative,
    profile_block,
    whole,
)
from devices import meters_of, name_of, release
from serving_engines import (
    ENGINES,
    SHAPES,
    Ours,
    Server,
    Theirs,
    bytes_per_step,
    cache_bytes_per_token,
    embedding,
    make_model,
)
from table import Row, failure, ratio, read_table, shown, write_table

from efficientllm.device import select_device, synchronize
from efficientllm.distributed.totals import peak_gib
from efficientllm.measurement.memory import GIB
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.utilization import UtilizationMeter, UtilizationReading
from efficientllm.models.accounting import bytes_in_memory
from efficientllm.registry import precision_keys
from efficientllm.serving.bandwidth import copy_bandwidth
from efficientllm.serving.clock import Clock


def main() -> None:
    """Runs the chosen combinations and prints a line for each."""
    arguments = _arguments()
    device = select_device()
    nvml, name = meters_of(device), name_of(device)
    bandwidth = copy_bandwidth(device)
    print(
        f"{name}: copies at {bandwidth.bytes_per_second / 1e9:.0f} GB/s; prompt {arguments.prompt}, output {arguments.output}"
    )
    results = read_table(arguments.out) if arguments.out else []
    if others := {row.get("device", "an unnamed device") for row in results} - {name}:
        raise SystemExit(f"{arguments.out} has rows of {', '.join(others)}, and this is {name}: name another file")
    tokens: dict[tuple[str, ...], torch.Tensor] = {}
    for shape in arguments.shapes:
        for key in arguments.precisions:
            for engine in sorted(arguments.engines, key=ENGINES[::-1].index):  # ours first: the others compare with it
                _served(shape, key, engine, arguments, device, name, nvml, results, tokens)


def _served(
    shape: str,
    key: str,
    engine: str,
    arguments: argparse.Namespace,
    device: torch.device,
    device_name: str,
    nvml: NvmlDevice | None,
    results: list[Row],
    tokens: dict[tuple[str, ...], torch.Tensor],
) -> None:
    """Makes one model and serves it at all batch sizes that the table lacks."""
    model = None
    longest = arguments.prompt + arguments.output
    for batch in arguments.batches:
        row: Row = {"shape": shape, "precision": key, "engine": engine, "batch": batch}
        row |= {"prompt": arguments.prompt, "output": arguments.output, "device": device_name}
        if any(row.items() <= known.items() for known in results):
            continue
        try:
            model = model or make_model(shape, key, engine, longest, arguments.options[key], device)
            found, row_values = _measured(model, engine, batch, arguments, device, nvml)
            row |= row_values
            if engine == "ours":
                tokens[shape, key, str(batch)] = found.cpu()
            if (ours := tokens.get((shape, key, str(batch)))) is not None:  # an earlier run may have had them
                row["same"] = float((found.cpu() == ours).float().mean())
        except Exception as error:  # a combination that fails is a result too
            row["failure"] = failure(error)
            if arguments.traceback:
                raise
        release(device)
        results.append(row)
        _print(row, results)
        if arguments.out:
            write_table(arguments.out, results)
        if model is None:  # it could not be made: no batch will do
            return
    model = None
    release(device)


def _measured(
    model: Any, engine: str, batch: int, arguments: argparse.Namespace, device: torch.device, nvml: NvmlDevice | None
) -> tuple[torch.Tensor, Row]:
    """Serves batches of one size and returns the generated tokens and all figures."""
    shape = (batch, arguments.prompt, arguments.output)
    started = time.perf_counter()
    server: Server = Ours(model, *shape) if engine == "ours" else Theirs(model, *shape, static=engine == "static")
    vocabulary = embedding(model).shape[0]
    prompts = torch.randint(vocabulary, shape[:2], generator=torch.Generator().manual_seed(1)).to(device)
    server.warm_up(prompts)
    synchronize(device)
    warmup = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: list[list[float]] = []

    def request() -> torch.Tensor:
        clock = Clock(device)
        tokens = server.request(prompts, clock)
        synchronize(device)
        times.append(server.times if isinstance(server, Ours) else clock.seconds())
        return tokens

    requests = _window(request, arguments, device, nvml)
    prefills = _window(lambda: server.prefill(prompts), arguments, device, nvml)
    gaps = [later - earlier for batch_times in times for earlier, later in itertools.pairwise(batch_times)]
    step = statistics.median(gaps)
    count, decoded = batch * arguments.output, batch * (arguments.output - 1)
    read = bytes_per_step(model, batch, arguments.prompt + arguments.output / 2)
    joules = None if requests.joules is None or prefills.joules is None else (requests.joules, prefills.joules)
    return requests.result, {
        "ttft_ms": 1000 * statistics.median(batch_times[0] for batch_times in times),
        "itl_ms_p50": 1000 * step,
        "itl_ms_p95": 1000 * sorted(gaps)[int(0.95 * (len(gaps) - 1))],
        "prefill_ms": 1000 * prefills.seconds,
        "requests_per_second": batch / requests.seconds,
        "tokens_per_second": count / requests.seconds,
        "weights_gib": bytes_in_memory(model) / GIB,
        "cache_gib": batch * (arguments.prompt + arguments.output) * cache_bytes_per_token(model) / GIB,
        "peak_gib": peak_gib(device),
        "watts": joules and joules[0] / requests.seconds,
        "sm_clock_mhz": requests.busy.sm_clock_mhz,
        "busy_percent": requests.busy.percent if requests.busy.on_gpu else None,
        "joules_per_token": joules and joules[0] / count,
        "prefill_joules_per_token": joules and joules[1] / (batch * arguments.prompt),
        "decode_joules_per_token": joules and (joules[0] - joules[1]) / decoded,
        "roof": read / step / copy_bandwidth(device).bytes_per_second,
        "warmup_s": warmup,
        "execution": server.execution,
    }


@dataclass(frozen=True)
class _Window:
    """Seconds and joules of a call, the mean over a window; what the last call returned; how busy the GPU was."""

    seconds: float
    joules: float | None
    result: Any
    busy: UtilizationReading


def _window(
    call: Callable[[], Any], arguments: argparse.Namespace, device: torch.device, nvml: NvmlDevice | None
) -> _Window:
    """Calls again and again, for at least the asked number of calls and seconds."""

    def joules() -> float | None:
        return None if nvml is None else nvml.joules()

    synchronize(device)
    calls, result = 0, None
    with UtilizationMeter(nvml).window() if nvml else contextlib.nullcontext(UtilizationReading()) as busy:
        before, started = joules(), time.perf_counter()
        while calls < arguments.repeats or time.perf_counter() - started < arguments.seconds:
            result = call()
            synchronize(device)
            calls += 1
        seconds, after = time.perf_counter() - started, joules()
    spent = None if before is None or after is None or after <= before else (after - before) / calls
    return _Window(seconds / calls, spent, result, busy)


def _print(row: Row, results: list[Row]) -> None:
    head = f"{row['shape']:13s} {row['precision']:9s} {row['engine']:9s} batch {row['batch']:3d}"
    if "failure" in row:
        print(f"{head}  failed: {row['failure']}", flush=True)
        return

    same = {name: row[name] for name in ("shape", "precision", "engine", "batch", "prompt", "output")}
    row["x_ours"] = ratio(row, results, "tokens_per_second", **same | {"engine": "ours"})
    row["x_bfloat16"] = ratio(row, results, "tokens_per_second", **same | {"precision": "bfloat16"})
    print(
        f"{head}  first {row['ttft_ms']:8.2f} ms  next {row['itl_ms_p50']:7.3f} ms (p95 {row['itl_ms_p95']:7.3f})  "
        f"{row['tokens_per_second']:9.0f} tok/s  {row['requests_per_second']:7.2f} req/s  roof {row['roof']:6.1%}  "
        f"{shown(row['joules_per_token'], '.4f')} J/tok (prefill {shown(row['prefill_joules_per_token'], '.5f')}, decode "
        f"{shown(row['decode_joules_per_token'], '.4f')})  {shown(row['watts'], '.0f')} W at "
        f"{shown(row.get('sm_clock_mhz'), '.0f')} MHz, busy {shown(row.get('busy_percent'), '.0f')} %  weights {row['weights_gib']:.2f} "
        f"cache {row['cache_gib']:.2f} peak {shown(row['peak_gib'], '.2f')} GiB  x ours {shown(row['x_ours'], '.2f')}  "
        f"x bfloat16 {shown(row['x_bfloat16'], '.2f')}  same {shown(row.get('same'), '.2f')}  [{row['execution']}; warm-up "
        f"{row['warmup_s']:.0f} s]",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_names(parser, "--shapes", "models' shapes", SHAPES, "168M,Llama-3.2-1B,Qwen2.5-7B")
    add_names(parser, "--precisions", "precisions", precision_keys(), "bfloat16,float16,int8,int4")
    add_names(parser, "--engines", "engines", ENGINES, ",".join(ENGINES))
    add_requests(parser, batches="1,8,64")
    parser.add_argument("--seconds", type=not_negative, default=2.0, help="shortest window of time and energy")
    parser.add_argument("--repeats", type=whole(), default=3, help="fewest requests of a window")
    add_profile(parser, "profiles/gpu.yaml", "quantize")
    add_traceback(parser)
    add_out(parser, resumes=True)
    arguments = parser.parse_args()
    arguments.options = profile_block(parser, arguments.profile, "quantize")
    return arguments


if __name__ == "__main__":
    main()
