"""Measures one cell: quality, a window of training steps, a serving workload; all from its artifact, on this machine."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from efficientllm import metrics, paths, registry
from efficientllm.config import Configuration
from efficientllm.device import select_device
from efficientllm.errors import CellFailure
from efficientllm.files import content_hash, file_hash, read_json
from efficientllm.measurement import subjects
from efficientllm.measurement.energy import COUNTER_TOLERANCE, EnergyMeter, carbon_dioxide_grams
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.protocol import WorkloadResult, check_exclusive, idle_watts, measure_workload
from efficientllm.measurement.provenance import provenance
from efficientllm.measurement.quality import perplexity_values, task_values
from efficientllm.measurement.statistics import bootstrap_interval, single, summarize
from efficientllm.measurement.utilization import model_flops_utilization, peak_flops
from efficientllm.measurement.workloads import serving_engine, serving_prompts, serving_workload, training_workload
from efficientllm.models.decoder import Decoder
from efficientllm.records import ModelFacts, Record, Value, write_record
from efficientllm.stage import cell_errors, failure


@dataclass
class Findings:
    """What has been measured of a cell so far."""

    model: ModelFacts
    kernels: dict[str, str]
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    information: dict[str, Any] = field(default_factory=dict)


def measure_cell(configuration: Configuration, axis: registry.Axis, cell: str) -> None:
    """Measures a cell and writes its record; a cell that failed, or fails here, gets a record that says why.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.

    Raises:
        MeasurementError: A figure would be wrong: the device is shared, a sensor is dead.
        ArtifactError: The cell's artifact is missing or damaged.
    """
    artifact = paths.artifact(axis, cell)
    technique, size = subjects.identity(configuration, axis, cell)
    hardware = read_json(paths.HARDWARE)
    origin = provenance(
        seed=configuration.parameters.seed,
        profile=configuration.parameters.profile,
        kernels={},
        hashes={
            "data": file_hash(paths.DATA / "manifest.json"),
            "measure": content_hash(configuration.profile.measure.model_dump()),
            **{path.name: file_hash(path) for path in sorted(artifact.glob("*.safetensors"))},
        },
        hardware=hardware,
    )

    def write(kernels: dict[str, str], **outcome: Any) -> None:
        known = origin.model_copy(update={"kernels": kernels})
        record = Record(axis=axis, cell=cell, technique=technique, size=size, provenance=known, **outcome)
        write_record(paths.record(axis, cell), record)

    try:
        with cell_errors():
            if (reason := failure(artifact)) is not None:
                raise CellFailure(f"{artifact}: {reason}")
            findings = _measure(configuration, axis, cell)
    except CellFailure as error:
        write({}, status="failed", reason=str(error))
        print(f"{axis}@{cell} failed, and is recorded as failed: {error}")
        return
    write(
        findings.kernels, status="ok", model=findings.model, metrics=findings.values, missing=findings.missing,
        information=findings.information,
    )  # fmt: skip
    primary = findings.values[metrics.PERFORMANCE[axis]]
    print(f"{axis}@{cell}: {metrics.PERFORMANCE[axis]} {primary.value:.4g}, "
          f"{findings.values['energy_per_token'].value:.3g} J/token ({findings.values['energy_per_token'].source})")  # fmt: skip


def _measure(configuration: Configuration, axis: registry.Axis, cell: str) -> Findings:
    settings = configuration.profile.measure
    device = select_device()
    memory = MemoryMeter(device)
    meter = EnergyMeter(device, settings.country_iso_code)
    others = check_exclusive(meter.nvml, allow_shared=settings.allow_shared)
    information: dict[str, Any] = {
        "idle_watts": idle_watts(settings.idle_seconds, meter),
        "other_processes_on_device": others,
        "energy_methods": meter.component_methods,
    }
    trained = None
    if axis != "quantize":
        # first, in a process that holds nothing else yet
        trained = _train(configuration, axis, cell, meter, memory, device)
        gc.collect()
    decoder = subjects.load(configuration, axis, cell, device)
    facts = subjects.facts(configuration, axis, cell, decoder, 0 if trained is None else trained.trainable)
    kernels = decoder.kernels(device) if trained is None else trained.kernels
    findings = Findings(facts, kernels, information=information)
    if trained is not None:
        _training_values(configuration, axis, cell, trained, meter, findings)
    # serving comes before the evaluation, whose large batches leave memory behind in the process; and one batch is
    # served unmeasured, so that its one-off costs are not in the times of its tokens
    engine = serving_engine(decoder, settings)
    findings.kernels["serving"] = engine.execution
    prompts = serving_prompts(settings, device)
    engine.generate(prompts)
    times = [engine.generate(prompts, time_tokens=True).token_times for _ in range(settings.repeats)]
    served = measure_workload(serving_workload(engine, settings, device), settings, meter, memory)
    del engine
    _serving_values(axis, served, times, meter, configuration, findings)
    task_scores = _quality(configuration, axis, decoder, device, findings)
    _compression(configuration, axis, cell, task_scores, device, findings)
    return findings


@dataclass(frozen=True)
class _Trained:
    """A measured training window."""

    result: WorkloadResult
    tokens: int
    samples: int
    trainable: int
    dtype: str
    kernels: dict[str, str]


def _train(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    meter: EnergyMeter,
    memory: MemoryMeter,
    device: torch.device,
) -> _Trained:
    trainer = subjects.trainer(configuration, axis, cell, device)
    workload = training_workload(trainer)
    result = measure_workload(workload, configuration.profile.measure, meter, memory)
    trainable = sum(parameter.numel() for parameter in trainer.task.model.parameters() if parameter.requires_grad)
    dtype = str(trainer.autocast or torch.float32).removeprefix("torch.")
    return _Trained(result, workload.tokens_per_call, workload.samples_per_call, trainable, dtype, trainer.kernels())


def _quality(
    configuration: Configuration, axis: registry.Axis, decoder: Decoder, device: torch.device, findings: Findings
) -> np.ndarray | None:
    """Evaluates the model; returns whether each test example was answered rightly, None where there is no task."""
    wanted = {entry.key for entry in metrics.measured_metrics(axis)}
    values = perplexity_values(configuration, decoder, device)
    correct = None
    if axis != "pretrain":
        scored, groups, correct = task_values(configuration, decoder, device)
        values |= scored
        findings.information["task_groups"] = groups
    findings.values |= {key: value for key, value in values.items() if key in wanted}
    return correct


def _training_values(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    trained: _Trained,
    meter: EnergyMeter,
    findings: Findings,
) -> None:
    result = trained.result
    _resource_values(result, meter, trained.tokens, configuration, findings, "training")
    window = _window_seconds(result)
    method = f"steady training steps of {trained.samples} sequences, {trained.tokens} tokens; wall clock"

    def put(key: str, repeats: Sequence[float]) -> None:
        findings.values[key] = summarize(key, repeats, source="measured", method=method, window_s=window)

    seconds = result.seconds_per_call()
    throughput = [trained.tokens / value for value in seconds]
    put("average_latency", seconds)
    put("training_throughput", throughput)
    put("training_throughput_per_parameter", [value / findings.model.parameters_active for value in throughput])
    put("sample_throughput", [trained.samples / value for value in seconds])
    key = "model_flops_utilization"
    peak = peak_flops(meter.device_name, trained.dtype)
    if axis == "tune" and trained.trainable < findings.model.parameters_total:
        findings.missing[key] = "a partly frozen model skips part of the backward pass: its operations are not counted"
    elif peak is None:
        findings.missing[key] = f"no dense {trained.dtype} peak is known for {meter.device_name}"
    else:
        operations = findings.model.flops_per_token or 0.0
        put(key, [model_flops_utilization(operations * value, peak) for value in throughput])


def _serving_values(
    axis: registry.Axis,
    result: WorkloadResult,
    times: list[list[float]],
    meter: EnergyMeter,
    configuration: Configuration,
    findings: Findings,
) -> None:
    settings = configuration.profile.measure
    tokens = settings.serving_batch_size * settings.serving_output_length
    window = _window_seconds(result)
    shape = (
        f"batch of {settings.serving_batch_size} requests, {settings.serving_prompt_length} prompt and "
        f"{settings.serving_output_length} generated tokens, greedy"
    )

    def put(key: str, repeats: Sequence[float], method: str, window_s: float | None) -> None:
        findings.values[key] = summarize(key, repeats, source="measured", method=method, window_s=window_s)

    seconds = result.seconds_per_call()
    if axis == "quantize":
        _resource_values(result, meter, tokens, configuration, findings, "serving")
        put("average_latency", seconds, f"{shape}; wall clock", window)
        put("sample_throughput", [settings.serving_batch_size / value for value in seconds], shape, window)
    else:
        findings.information["serving"] = {
            "joules_per_token": [joules / tokens for joules in result.joules_per_call()],
            "energy_source": meter.source,
            "memory_gib": result.memory.mean,
        }
    put("inference_throughput", [tokens / value for value in seconds], shape, window)
    gaps = [np.diff(batch) for batch in times]
    single = f"{shape}; the host waits for each token"
    put("time_to_first_token", [batch[0] for batch in times], single, None)
    put("inter_token_latency", [float(np.median(gap)) for gap in gaps], single, None)
    put("inter_token_latency_p95", [float(np.percentile(gap, 95)) for gap in gaps], single, None)


def _resource_values(
    result: WorkloadResult,
    meter: EnergyMeter,
    tokens: int,
    configuration: Configuration,
    findings: Findings,
    workload: str,
) -> None:
    """Memory, utilisation, power and energy of the workload that an axis is ranked on."""
    window = _window_seconds(result)
    for key, value in (
        ("accelerator_memory_utilization", result.memory.mean),
        ("memory_peak", result.memory.peak),
    ):
        findings.values[key] = summarize(key, [value], source="measured", method=f"{workload}: {result.memory_method}")
    busy = [window.busy_percent for window in result.windows]
    findings.values["processor_compute_utilization"] = summarize(
        "processor_compute_utilization",
        busy,
        source="measured",
        method=f"{workload}: {result.busy_method}",
        window_s=window,
    )
    energy = {
        "average_energy_consumption": [window.energy.watts for window in result.windows],
        "energy_per_token": [joules / tokens for joules in result.joules_per_call()],
    }
    for key, repeats in energy.items():
        findings.values[key] = summarize(
            key, repeats, source=meter.source, method=f"{workload}: {meter.method}", window_s=window
        )
    idle = findings.information["idle_watts"]
    joules = sum(window.energy.joules for window in result.windows)
    findings.information[workload] = {
        "warmup_calls": result.warmup_calls,
        "warmup_stable": result.stable,
        "calls": [window.calls for window in result.windows],
        "tokens_per_call": tokens,
        "component_joules": [window.energy.components for window in result.windows],
        "counter_difference": [window.energy.counter_difference for window in result.windows],
        "counter_disagrees": any(
            (window.energy.counter_difference or 0) > COUNTER_TOLERANCE for window in result.windows
        ),
        "net_watts": None if idle is None else [window.energy.watts - idle for window in result.windows],
        "memory_reserved_gib": result.memory.reserved,
        "grams_co2e_per_million_tokens": carbon_dioxide_grams(
            joules / (sum(window.calls for window in result.windows) * tokens) * 1e6,
            configuration.profile.measure.country_iso_code,
        ),
    }


def _window_seconds(result: WorkloadResult) -> float:
    return float(np.mean([window.energy.seconds for window in result.windows]))


def _compression(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    correct: np.ndarray | None,
    device: torch.device,
    findings: Findings,
) -> None:
    key = "model_compression_rate"
    if axis == "pretrain":
        return
    stored = findings.model.bytes_on_disk
    size = subjects.identity(configuration, axis, cell)[1]
    if axis == "tune":
        whole = subjects.base_bytes(size)
        findings.values[key] = single(
            key, whole / stored, method="bytes of the base's weights over bytes that the method stores"
        )
        return
    original = subjects.reference(configuration, size, device)
    _, _, reference = task_values(configuration, original, device)
    whole = subjects.bytes_in_memory(original)
    findings.information["compression"] = {
        "bytes_bfloat16": whole,
        "bytes_stored": stored,
        "bytes_in_memory": findings.model.bytes_in_memory,
        "accuracy_bfloat16": 100 * float(reference.mean()),
    }
    if correct is None or not reference.any():
        findings.missing[key] = (
            "the bfloat16 model answers no test example rightly: there is no quality to compare with"
        )
        return
    pairs = np.stack([correct, reference], axis=1)
    low, high = bootstrap_interval(
        pairs, lambda draws: draws[..., 0].sum(axis=1) / np.maximum(draws[..., 1].sum(axis=1), 1)
    )
    ratio = whole / stored
    findings.values[key] = single(
        key, ratio * correct.mean() / reference.mean(), n=len(correct), interval=(ratio * low, ratio * high),
        method="stored bytes of bfloat16 over this cell's, times task accuracy over bfloat16's; paired bootstrap",
    )  # fmt: skip
