"""Memory, utilization, power and energy of a measured workload."""

from collections.abc import Sequence

import numpy as np

from efficientllm.config import Configuration
from efficientllm.measurement.carbon import carbon_dioxide_grams
from efficientllm.measurement.energy import JOULES_PER_KWH, EnergyMeter
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.memory import GIB
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
    """Adds memory, utilization, power and energy of the workload that an axis is ranked on.

    Args:
        result: The measured workload.
        meter: The meter that it was measured by.
        tokens: Tokens of one call of the workload.
        configuration: The run's parameters.
        findings: Takes the values.
        workload: The workload's name: training or serving.
    """
    window = window_seconds(result)
    unseen = f"the {result.unseen_bytes / GIB:.3g} GiB that CUDA graphs keep for the prompts"
    for key, held, graphs in (
        ("accelerator_memory_utilization", [reading.mean for reading in result.memory], f"; without {unseen}"),
        (
            "memory_peak",
            [max(reading.peak for reading in result.memory)],
            f"; with {unseen}, taken by launching them kernel by kernel",
        ),
    ):
        method = f"{workload}: {result.memory_method}{graphs if result.unseen_bytes else ''}"
        findings.values[key] = summarize(key, held, source="measured", method=method)
    busy = [window.busy.percent for window in result.windows]
    findings.values["processor_compute_utilization"] = summarize(
        "processor_compute_utilization",
        busy,
        source="measured",
        method=f"{workload}: {result.busy_method}{result.doubts()}",
        window_s=window,
    )
    _energy_values(result, meter, tokens, findings, workload)
    country, last = configuration.profile.measure.country_iso_code, result.memory[-1]
    per_million = sum(result.joules_per_call()) / len(result.windows) / tokens * 1e6
    findings.information[workload] = {
        "warmup_calls": result.warmup_calls,
        "warmup_seconds": result.warmup_seconds,
        "warmup_stable": result.stable,
        "calls": [window.calls for window in result.windows],
        "turns": [window.turn for window in result.windows],
        "tokens_per_call": tokens,
        "component_joules": [window.energy.components for window in result.windows],
        "counter_difference": [window.energy.counter_difference for window in result.windows],
        "energy_faults": [window.energy.fault for window in result.windows],
        "others_cores": [window.busy.others_cores for window in result.windows],
        "sm_clock_mhz": [window.busy.sm_clock_mhz for window in result.windows],
        "celsius": [window.celsius for window in result.windows],
        "slowed": [window.slowed for window in result.windows],
        "memory_reserved_gib": last.reserved,
        "memory_process_gib": last.process,
        "memory_process_missing": last.process_missing,
        "kwh_per_million_tokens": per_million / JOULES_PER_KWH,
        "grams_co2e_per_million_tokens": carbon_dioxide_grams(per_million, country),
        "country_iso_code": country,
    }


def _energy_values(result: WorkloadResult, meter: EnergyMeter, tokens: int, findings: Findings, workload: str) -> None:
    """Adds power, energy per token, and the same above the idle machine; doubts stand in the method."""
    information = findings.information
    method = f"{workload}: {meter.method}{energy_doubts([result], findings)}"
    values = {
        "average_energy_consumption": [window.energy.watts for window in result.windows],
        "energy_per_token": [joules / tokens for joules in result.joules_per_call()],
    }
    idle, key = information["idle_watts"], "net_energy_per_token"
    if idle is None:
        findings.missing[key] = f"no idle power: {information['idle_watts_missing']}"
    else:
        net = [
            (window.energy.joules - idle * window.energy.seconds) / window.calls / tokens for window in result.windows
        ]
        if min(net) > 0:
            values[key] = net
        else:
            findings.missing[key] = f"the machine took no more than at idle ({idle:.3g} W)"
    for name, repeats in values.items():
        findings.values[name] = summarize(
            name, repeats, source=meter.source, method=method, window_s=window_seconds(result)
        )


def energy_doubts(results: Sequence[WorkloadResult], findings: Findings) -> str:
    """What makes energies from these workloads' windows doubtful, to be put behind a method; mostly nothing."""
    doubts = dict.fromkeys(result.doubts() for result in results)
    faults = [window.energy.fault for result in results for window in result.windows]
    faults.append(findings.information["energy_sensor_doubt"])
    doubts |= dict.fromkeys(f"; DOUBTFUL: {fault}" for fault in faults if fault is not None)
    return "".join(doubts)


def window_seconds(result: WorkloadResult) -> float:
    """Mean length of the repeats' windows in seconds."""
    return float(np.mean([window.seconds for window in result.windows]))
