"""The serving workload of a cell and the values that come from it.

The quantization axis, which ranks serving, has windows under the whole protocol: two per repeat, in random order, of whole
requests and of their prefill alone. What decoding takes is the difference, so that the two parts add up to the whole; a
window of decoding alone would be one of another mix of work, at other clocks. The other axes rank training: their served
batches are timed by the marks between tokens, and take no windows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from efficientllm import registry
from efficientllm.config import Configuration
from efficientllm.config.schema import MeasureSettings
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.memory import GIB, MemoryMeter
from efficientllm.measurement.parts import stored_parts
from efficientllm.measurement.protocol import WorkloadResult, measure_workloads
from efficientllm.measurement.resource_values import energy_doubts, resource_values, window_seconds
from efficientllm.measurement.statistics import single, summarize
from efficientllm.measurement.workloads import prefill_workload, serving_engine, serving_prompts, serving_workload
from efficientllm.models.decoder import Decoder
from efficientllm.serving.bandwidth import Bandwidth, copy_bandwidth
from efficientllm.serving.curves import serving_curves
from efficientllm.serving.engine import GreedyEngine
from efficientllm.serving.traffic import decoding_traffic


def serve(
    configuration: Configuration,
    axis: registry.Axis,
    decoder: Decoder,
    held_out: Path,
    meter: EnergyMeter,
    memory: MemoryMeter,
    findings: Findings,
) -> None:
    """Measures the serving workload of a model and adds its values: latencies, throughput, memory, for quantization energy.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        decoder: The model.
        held_out: Folder of the text that prompts are taken from, in the model's own tokens.
        meter: Meter of energy.
        memory: Meter of memory.
        findings: Takes the values.
    """
    settings = configuration.profile.measure
    device = decoder.embed_tokens.weight.device
    engine = serving_engine(decoder, settings)
    findings.kernels["serving"] = engine.execution
    prompts = serving_prompts(held_out, settings.serving_batch_size, settings.serving_prompt_length, device)
    findings.laps.end("compiling and recording the served steps")
    if axis == "quantize":
        served, prefill = measure_workloads(
            [serving_workload(engine, prompts), prefill_workload(engine, prompts)],
            settings, meter, memory, window_calls=settings.window_calls, seed=configuration.parameters.seed,
        )  # fmt: skip
        _request_values(served, meter, configuration, findings)
        _energy_by_phase(settings, prompts.numel(), engine.decoded_tokens, served, prefill, meter, findings)
        times = _token_times(engine, prompts, settings)
    else:
        for _ in range(settings.warmup_calls):
            engine.generate(prompts)
        times = _token_times(engine, prompts, settings)
        _marked_throughput(settings, times, findings)
    _latency_values(settings, times, findings)
    bandwidth = copy_bandwidth(device)
    _memory_values(decoder, engine, settings, times, bandwidth, findings)
    findings.information["weights"] = stored_parts(decoder)
    findings.laps.end("serving")
    if axis == "tune":
        return  # a tuned model is served in the shape of its base, whatever the method
    del engine  # its cache makes room for those of the curves
    findings.information["serving_curves"] = serving_curves(
        decoder, settings, lambda batch, length: serving_prompts(held_out, batch, length, device), meter, bandwidth
    )
    findings.laps.end("serving curves")


def _shape(settings: MeasureSettings) -> str:
    return (
        f"batch of {settings.serving_batch_size} requests, {settings.serving_prompt_length} prompt and "
        f"{settings.serving_output_length} generated tokens, greedy"
    )


def _request_values(
    result: WorkloadResult, meter: EnergyMeter, configuration: Configuration, findings: Findings
) -> None:
    """Values of whole requests, whose windows time and energy share."""
    settings = configuration.profile.measure
    tokens = settings.serving_batch_size * settings.serving_output_length
    window, shape = window_seconds(result), f"{_shape(settings)}{result.doubts()}"
    resource_values(result, meter, tokens, configuration, findings, "serving")
    seconds = result.seconds_per_call()
    for key, repeats, method in (
        ("average_latency", seconds, f"wall clock; {shape}"),
        ("sample_throughput", [settings.serving_batch_size / value for value in seconds], shape),
        ("inference_throughput", [tokens / value for value in seconds], shape),
    ):
        findings.values[key] = summarize(key, repeats, source="measured", method=method, window_s=window)


def _marked_throughput(settings: MeasureSettings, times: Sequence[np.ndarray], findings: Findings) -> None:
    """The throughput of an axis that does not rank it: from the marks of the tokens, without windows of its own."""
    tokens = settings.serving_batch_size * settings.serving_output_length
    findings.values["inference_throughput"] = summarize(
        "inference_throughput", [tokens / float(np.median(calls[:, -1])) for calls in times], source="measured",
        method=f"{_shape(settings)}; from the start to the last token's mark, {settings.window_calls} batches a repeat",
    )  # fmt: skip


def _token_times(engine: GreedyEngine, prompts: torch.Tensor, settings: MeasureSettings) -> list[np.ndarray]:
    """Seconds from a call's start to each of its tokens, `[calls, output_length]` for each repeat."""
    return [
        np.array([engine.generate(prompts, time_tokens=True).token_times for _ in range(settings.window_calls)])
        for _ in range(settings.repeats)
    ]


def _latency_values(settings: MeasureSettings, times: list[np.ndarray], findings: Findings) -> None:
    """Values of single tokens."""
    method = (
        f"{_shape(settings)}, {settings.window_calls} batches a repeat; marks between the tokens on the device's own time "
        "line, for which nothing waits"
    )
    gaps = [np.diff(calls, axis=1) for calls in times]
    for key, repeats in (
        ("time_to_first_token", [float(np.median(calls[:, 0])) for calls in times]),
        ("inter_token_latency", [float(np.median(gap)) for gap in gaps]),
        ("inter_token_latency_p95", [float(np.percentile(gap, 95)) for gap in gaps]),
    ):
        findings.values[key] = summarize(key, repeats, source="measured", method=method)


def _energy_by_phase(
    settings: MeasureSettings,
    prompt_tokens: int,
    decoded_tokens: int,
    served: WorkloadResult,
    prefill: WorkloadResult,
    meter: EnergyMeter,
    findings: Findings,
) -> None:
    """Joules of prefill, from windows of their own, and of decoding, as the difference to whole requests."""
    shape = f"{_shape(settings)}; {meter.method}"
    findings.values["prefill_energy_per_token"] = summarize(
        "prefill_energy_per_token", [joules / prompt_tokens for joules in prefill.joules_per_call()], source=meter.source,
        method=f"windows of prefill alone; {shape}{energy_doubts([prefill], findings)}", window_s=window_seconds(prefill),
    )  # fmt: skip
    key = "decode_energy_per_token"
    tokens = settings.serving_batch_size * decoded_tokens
    pairs = zip(served.joules_per_call(), prefill.joules_per_call(), strict=True)
    decoding = [whole - part for whole, part in pairs]
    if min(decoding) <= 0:
        findings.missing[key] = (
            "prefill alone took as much energy as whole requests: the windows are too short or too noisy"
        )
        return
    findings.values[key] = summarize(
        key, [joules / tokens for joules in decoding], source=meter.source,
        method=f"whole requests less prefill, repeat by repeat; {shape}{energy_doubts([served, prefill], findings)}",
        window_s=window_seconds(served),
    )  # fmt: skip


def _memory_values(
    decoder: Decoder,
    engine: GreedyEngine,
    settings: MeasureSettings,
    times: list[np.ndarray],
    bandwidth: Bandwidth,
    findings: Findings,
) -> None:
    """What the served model holds, and how near decoding comes to the rate at which the device can read it."""
    for key, held, method in (
        ("weights_memory", findings.model.bytes_in_memory, "bytes of all tensors of the loaded model"),
        ("cache_memory", engine.cache.nbytes(), f"{_shape(settings)}; bytes of the allocated cache"),
    ):
        findings.values[key] = single(key, held / GIB, method=method)
    context = settings.serving_prompt_length + settings.serving_output_length / 2
    traffic = decoding_traffic(decoder, engine.cache, context)
    rates = [traffic.total / float(np.median(np.diff(calls, axis=1))) for calls in times]
    findings.values["memory_bandwidth_utilization"] = summarize(
        "memory_bandwidth_utilization",
        [100 * rate / bandwidth.bytes_per_second for rate in rates],
        source="measured",
        method=f"{traffic.total:.0f} bytes per step ({traffic.weights:.0f} weights, {traffic.cache:.0f} cache at a context of "
        f"{context:g}) over the median inter-token latency, against a measured copy of {bandwidth.buffer_bytes >> 20} MiB at "
        f"{bandwidth.bytes_per_second / 1e9:.1f} GB/s",
    )
    findings.information["memory_bandwidth"] = {
        "copy_bytes_per_second": bandwidth.bytes_per_second,
        "copies": bandwidth.copies,
        "decoding_weights_bytes": traffic.weights,
        "decoding_cache_bytes": traffic.cache,
        "context": context,
    }
