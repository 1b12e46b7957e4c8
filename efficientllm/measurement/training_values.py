"""The training workload of a cell: its window of steps and the values that come from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from efficientllm import registry
from efficientllm.config import Configuration
from efficientllm.measurement import subjects
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.protocol import WorkloadResult, measure_workload
from efficientllm.measurement.resource_values import resource_values, window_seconds
from efficientllm.measurement.statistics import summarize
from efficientllm.measurement.utilization import model_flops_utilization, peak_flops
from efficientllm.measurement.workloads import training_workload


@dataclass(frozen=True)
class Trained:
    """A measured training window."""

    result: WorkloadResult
    tokens: int
    samples: int
    trainable: int
    dtype: str
    kernels: dict[str, str]


def train(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    meter: EnergyMeter,
    memory: MemoryMeter,
    device: torch.device,
) -> Trained:
    """Measures a window of a cell's training steps."""
    trainer = subjects.trainer(configuration, axis, cell, device)
    workload = training_workload(trainer)
    result = measure_workload(workload, configuration.profile.measure, meter, memory)
    trainable = sum(parameter.numel() for parameter in trainer.task.model.parameters() if parameter.requires_grad)
    dtype = str(trainer.autocast or torch.float32).removeprefix("torch.")
    return Trained(result, workload.tokens_per_call, workload.samples_per_call, trainable, dtype, trainer.kernels())


def training_values(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    trained: Trained,
    meter: EnergyMeter,
    findings: Findings,
) -> None:
    """Adds the values of the training window: throughput, latency, utilization, memory and energy."""
    result = trained.result
    resource_values(result, meter, trained.tokens, configuration, findings, "training")
    window = window_seconds(result)
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
