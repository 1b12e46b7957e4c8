"""The serving workload of a cell and the values that come from it."""

from collections.abc import Sequence

import numpy as np

from efficientllm import registry
from efficientllm.config import Configuration
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.protocol import WorkloadResult, measure_workload
from efficientllm.measurement.resource_values import resource_values, window_seconds
from efficientllm.measurement.statistics import summarize
from efficientllm.measurement.workloads import serving_engine, serving_prompts, serving_workload
from efficientllm.models.decoder import Decoder


def serve(
    configuration: Configuration,
    axis: registry.Axis,
    decoder: Decoder,
    meter: EnergyMeter,
    memory: MemoryMeter,
    findings: Findings,
) -> None:
    """Measures the serving workload of a model and adds its values: latencies, throughput, for quantization energy too."""
    settings = configuration.profile.measure
    device = decoder.embed_tokens.weight.device
    # one batch is served unmeasured, so that its one-off costs are not in the times of its tokens
    engine = serving_engine(decoder, settings)
    findings.kernels["serving"] = engine.execution
    prompts = serving_prompts(settings, device)
    engine.generate(prompts)
    times = [engine.generate(prompts, time_tokens=True).token_times for _ in range(settings.repeats)]
    served = measure_workload(serving_workload(engine, settings, device), settings, meter, memory)
    _serving_values(axis, served, times, meter, configuration, findings)


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
    window = window_seconds(result)
    shape = (
        f"batch of {settings.serving_batch_size} requests, {settings.serving_prompt_length} prompt and "
        f"{settings.serving_output_length} generated tokens, greedy"
    )

    def put(key: str, repeats: Sequence[float], method: str, window_s: float | None) -> None:
        findings.values[key] = summarize(key, repeats, source="measured", method=method, window_s=window_s)

    seconds = result.seconds_per_call()
    if axis == "quantize":
        resource_values(result, meter, tokens, configuration, findings, "serving")
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
