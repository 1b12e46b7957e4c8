"""The training workload of a cell: its window of steps and the values that come from it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from efficientllm import registry
from efficientllm.config import Configuration
from efficientllm.data.packing import IGNORED
from efficientllm.measurement import subjects
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.protocol import Workload, WorkloadResult, measure_workloads
from efficientllm.measurement.resource_values import resource_values, window_seconds
from efficientllm.measurement.statistics import summarize
from efficientllm.measurement.utilization import model_flops_utilization, peak_flops
from efficientllm.training.optimizer import state_bytes
from efficientllm.training.recorded_gradients import Batch
from efficientllm.training.trainer import Trainer


@dataclass(frozen=True)
class Trained:
    """A measured training window."""

    result: WorkloadResult
    tokens: int
    samples: int
    state: subjects.TrainingState
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
    trainer = _repeating(subjects.trainer(configuration, axis, cell, device))
    batches = _step_batches(trainer)
    workload = _workload(trainer, batches)
    settings = configuration.profile.measure
    (result,) = measure_workloads(
        [workload], settings, meter, memory, window_calls=settings.window_steps, seed=configuration.parameters.seed
    )
    trained = [parameter for parameter in trainer.task.model.parameters() if parameter.requires_grad]
    dtype = str(trainer.autocast or torch.float32).removeprefix("torch.")
    return Trained(
        result=result,
        tokens=workload.tokens_per_call,
        samples=workload.samples_per_call,
        state=subjects.TrainingState(
            parameters=sum(parameter.numel() for parameter in trained),
            parameter_bytes=sum(parameter.nbytes for parameter in trained),
            optimizer_bytes=state_bytes(trainer.optimizer),
            lengths=tuple(inputs.shape[1] for inputs, _ in batches),
            scored=sum(int((labels != IGNORED).sum()) for _, labels in batches) / workload.tokens_per_call,
        ),
        dtype=dtype,
        kernels=trainer.kernels(),
    )


def _repeating(trainer: Trainer) -> Trainer:
    """A trainer of the same set-up that takes the first batches of the training order again and again.

    So every call is the same work, and compared rows do it on the same tokens; the optimizer goes on moving the weights.
    """
    batches = _step_batches(trainer)
    task = dataclasses.replace(trainer.task, batch=lambda index: batches[index % len(batches)])
    return Trainer(task, trainer.settings, trainer.device)


def _step_batches(trainer: Trainer) -> list[Batch]:
    """The micro-batches of the first step."""
    return [trainer.task.batch(index) for index in range(trainer.settings.gradient_accumulation)]


def _workload(trainer: Trainer, batches: list[Batch]) -> Workload:
    """One optimizer step of a cell's own set-up, on these micro-batches."""
    settings = trainer.settings
    trainer.task.model.train()

    def step() -> None:
        trainer.step(settings.warmup_steps)  # the schedule's peak learning rate

    return Workload(
        step=step,
        tokens_per_call=sum(inputs.numel() for inputs, _ in batches),
        samples_per_call=sum(len(inputs) for inputs, _ in batches),
        device=trainer.device,
        record=trainer.record if trainer.device.type == "cuda" else None,
    )


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
    method = (
        f"steady training steps of {trained.samples} sequences, {trained.tokens} tokens; wall clock{result.doubts()}"
    )

    def put(key: str, repeats: Sequence[float]) -> None:
        findings.values[key] = summarize(key, repeats, source="measured", method=method, window_s=window)

    seconds = result.seconds_per_call()
    throughput = [trained.tokens / value for value in seconds]
    put("average_latency", seconds)
    put("training_throughput", throughput)
    put("training_throughput_per_parameter", [value / findings.model.parameters_active for value in throughput])
    put("sample_throughput", [trained.samples / value for value in seconds])
    if axis == "tune":
        energy, length = findings.values["energy_per_token"], trained.tokens / trained.samples
        findings.values["energy_per_sample"] = summarize(
            "energy_per_sample", [joules * length for joules in energy.repeats], source=energy.source,
            method=energy.method, window_s=window,
        )  # fmt: skip
    key = "model_flops_utilization"
    peak = peak_flops(meter.device_name, trained.dtype)
    if axis == "tune" and trained.state.parameters < findings.model.parameters_total:
        findings.missing[key] = "a partly frozen model skips part of the backward pass: its operations are not counted"
    elif peak is None:
        findings.missing[key] = f"no dense {trained.dtype} peak is known for {meter.device_name}"
    else:
        operations = findings.model.flops_per_token or 0.0
        put(key, [model_flops_utilization(operations * value, peak) for value in throughput])
