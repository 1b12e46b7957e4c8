"""Memory, utilization, power and energy of a measured workload."""

import numpy as np

from efficientllm.config import Configuration
from efficientllm.measurement.energy import COUNTER_TOLERANCE, EnergyMeter, carbon_dioxide_grams
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.protocol import WorkloadResult
from efficientllm.measurement.statistics import summarize


def resource_values(
    result: WorkloadResult,
    meter: EnergyMeter,
    tokens: int,
    configuration: Configuration,
    findings: Findings,
    workload: str,
) -> None:
    """Adds memory, utilisation, power and energy of the workload that an axis is ranked on.

    Args:
        result: The measured workload.
        meter: The meter that it was measured by.
        tokens: Tokens of one call of the workload.
        configuration: The run's parameters.
        findings: Takes the values.
        workload: The workload's name: training or serving.
    """
    window = window_seconds(result)
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


def window_seconds(result: WorkloadResult) -> float:
    """Mean length of the repeats' windows in seconds."""
    return float(np.mean([window.energy.seconds for window in result.windows]))
