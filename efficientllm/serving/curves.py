"""Decoding speed over the batch size and over the context length.

What a technique of inference is worth depends on both. Weights in few bits save reading them, which is most of a step's
work for a small batch and little for a large one; a small cache (MQA, MLA, NSA, a recurrent state) saves reading it, which
counts where contexts are long.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from efficientllm.config.schema import MeasureSettings
from efficientllm.device import synchronize
from efficientllm.errors import CellFailure
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.memory import GIB
from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.decoder import Decoder
from efficientllm.serving.bandwidth import Bandwidth
from efficientllm.serving.engine import GreedyEngine
from efficientllm.serving.traffic import decoding_traffic
from efficientllm.stage import cell_errors

SHORTEST_ENERGY_WINDOW = 0.5
"""Seconds from which on a window holds enough updates of an energy counter."""

_LEAST_CALLS = 2


def serving_curves(
    decoder: Decoder,
    settings: MeasureSettings,
    prompts: Callable[[int, int], torch.Tensor],
    meter: EnergyMeter,
    bandwidth: Bandwidth,
) -> dict[str, Any]:
    """Measures decoding at each batch size and at each context length of the settings.

    Args:
        decoder: The model, in evaluation mode.
        settings: The points, and the length of each one's window.
        prompts: Makes prompts of a batch size and a length.
        meter: The process' energy meter.
        bandwidth: The device's, as the roof of each point.

    Returns:
        `batches` and `contexts`, lists of points. A point has `batch` and `context` (tokens in each sequence's cache when
        the first token is decoded), and `tokens_per_second`, `inter_token_latency_s`, `joules_per_token` (null where the
        window is too short or its counter failed), `cache_bytes`, `weights_bytes`, `peak_gib` (null on a CPU), `bandwidth_share` and
        `execution`; or the `reason` why it could not be measured.
    """

    def points(shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        return [
            {"batch": batch, "context": context, **_point(decoder, batch, context, settings, prompts, meter, bandwidth)}
            for batch, context in shapes
        ]

    return {
        "tokens_per_call": settings.serving_curve_tokens,
        "window_seconds": settings.serving_curve_seconds,
        "energy_source": meter.source if settings.serving_curve_seconds >= SHORTEST_ENERGY_WINDOW else None,
        "batches": points([(batch, settings.serving_prompt_length) for batch in settings.serving_batches]),
        "contexts": points([(settings.serving_batch_size, context) for context in settings.serving_contexts]),
    }


def _point(
    decoder: Decoder,
    batch: int,
    context: int,
    settings: MeasureSettings,
    prompts: Callable[[int, int], torch.Tensor],
    meter: EnergyMeter,
    bandwidth: Bandwidth,
) -> dict[str, Any]:
    tokens = settings.serving_curve_tokens
    longest = decoder.config.context_length
    if context + tokens > longest:
        return {"reason": f"{context} tokens and {tokens} more are longer than the model's context of {longest}"}
    try:
        with cell_errors():
            return _measured(decoder, batch, context, settings, prompts, meter, bandwidth)
    except CellFailure as error:
        return {"reason": str(error)}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the graphs' pool is another one for each point


def _measured(
    decoder: Decoder,
    batch: int,
    context: int,
    settings: MeasureSettings,
    prompts: Callable[[int, int], torch.Tensor],
    meter: EnergyMeter,
    bandwidth: Bandwidth,
) -> dict[str, Any]:
    tokens = settings.serving_curve_tokens
    device = decoder.embed_tokens.weight.device
    engine = GreedyEngine(decoder, batch, context, tokens + 1)
    engine.prefill(prompts(batch, context))
    engine.decode()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    joules = None
    if settings.serving_curve_seconds >= SHORTEST_ENERGY_WINDOW:
        with meter.window() as energy:
            times = _calls(engine, device, settings.serving_curve_seconds)
        if energy.fault is None:  # else no figure, rather than one that nothing would mark as doubtful
            joules = energy.joules / (len(times) * tokens * batch)
    else:
        times = _calls(engine, device, settings.serving_curve_seconds)
    latency = statistics.median(times) / tokens
    traffic = decoding_traffic(decoder, engine.cache, context + (tokens + 1) / 2)
    return {
        "tokens_per_second": batch / latency,
        "inter_token_latency_s": latency,
        "calls": len(times),
        "joules_per_token": joules,
        "weights_bytes": bytes_in_memory(decoder),
        "cache_bytes": engine.cache.nbytes(),
        "peak_gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None,
        "bandwidth_share": traffic.total / latency / bandwidth.bytes_per_second,
        "execution": engine.execution,
    }


def _calls(engine: GreedyEngine, device: torch.device, seconds: float) -> list[float]:
    """Decodes again and again at the same positions; seconds of each call."""
    started, times = time.perf_counter(), list[float]()
    while len(times) < _LEAST_CALLS or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        engine.decode()
        synchronize(device)
        times.append(time.perf_counter() - before)
    return times
