"""What a technique saves in stored bytes, and what it does to the quality of the model that it starts from."""

import math
from typing import Any

import numpy as np
import torch

from efficientllm import registry
from efficientllm.bases.base import base_folder, read_base_quality
from efficientllm.config import Configuration
from efficientllm.evaluation.outcomes import Outcomes
from efficientllm.measurement import subjects
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.kept_evaluations import evaluation_key, keep, kept
from efficientllm.measurement.quality import NO_CHOICES, NoQualityError, perplexity_values, task_values
from efficientllm.measurement.quality_change import accuracy_change, perplexity_change
from efficientllm.measurement.statistics import bootstrap_interval, single
from efficientllm.models.decoder import Decoder
from efficientllm.quantization.precision import precision

_CHANGES = ("perplexity_change", "task_accuracy_change")
_BFLOAT16 = "the tuned model in bfloat16"
_UNTUNED = "the untuned base"


def compression_values(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    decoder: Decoder,
    outcomes: Outcomes | None,
    findings: Findings,
) -> None:
    """Adds the model compression rate and the change of quality: from the untuned base, or from bfloat16.

    The rate is one of stored bytes, for quantization times the quality that is left.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.
        decoder: The cell's model.
        outcomes: What evaluating it gave; None where it was not evaluated.
        findings: Takes the value, or the reason for its absence.
    """
    key = "model_compression_rate"
    if axis == "pretrain":
        return
    stored = findings.model.bytes_on_disk
    size = subjects.identity(configuration, axis, cell)[1]
    if axis == "tune":
        whole = subjects.base_bytes(configuration, size)
        findings.values[key] = single(
            key, whole / stored, method="bytes of the base's weights over bytes that the method stores"
        )
        _tuned(configuration, size, outcomes, findings)
        return
    _quantized(configuration, cell, decoder, outcomes, findings)


def _tuned(configuration: Configuration, size: str, outcomes: Outcomes | None, findings: Findings) -> None:
    """Compares a tuned cell with its base: what it has learned of the task and forgotten of the text."""
    if outcomes is None:
        findings.missing |= dict.fromkeys(_CHANGES, findings.missing["perplexity"])
        return
    base = read_base_quality(size)
    findings.values["perplexity_change"] = perplexity_change(outcomes.losses, base.losses, _UNTUNED)
    if outcomes.correct is None or base.correct is None:
        findings.missing["task_accuracy_change"] = NO_CHOICES
    else:
        findings.values["task_accuracy_change"] = accuracy_change(outcomes.correct, base.correct, _UNTUNED)


def _quantized(
    configuration: Configuration, cell: str, decoder: Decoder, outcomes: Outcomes | None, findings: Findings
) -> None:
    """Compares a quantized cell with the same model in bfloat16: bytes, perplexity, accuracy, and the rate of both."""
    technique, size = subjects.identity(configuration, "quantize", cell)
    stored, held = findings.model.bytes_on_disk, findings.model.bytes_in_memory
    whole = findings.model.parameters_total * torch.bfloat16.itemsize
    sizes: dict[str, Any] = {
        "bytes_bfloat16": whole,
        "bytes_stored": stored,
        "bytes_in_memory": held,
        "ratio_stored": whole / stored,
        "ratio_in_memory": whole / held,
        "ratio_nominal": 16 / precision(technique).nominal_bits,
    }
    findings.information["compression"] = sizes
    compared = (*_CHANGES, "model_compression_rate")
    if outcomes is None:
        findings.missing |= dict.fromkeys(compared, findings.missing["perplexity"])
        return
    if technique == subjects.REFERENCE_PRECISION:
        original = outcomes
        keep(evaluation_key(configuration, decoder, base_folder(size)), outcomes)
    else:
        try:
            original = _in_bfloat16(configuration, size, decoder.embed_tokens.weight.device)
        except NoQualityError as error:
            findings.missing |= dict.fromkeys(compared, f"in bfloat16 {error}")
            return
    findings.values["perplexity_change"] = perplexity_change(outcomes.losses, original.losses, _BFLOAT16)
    sizes["perplexity_bfloat16"] = math.exp(original.losses.mean)
    correct, reference = outcomes.correct, original.correct
    if correct is None or reference is None:
        findings.missing |= dict.fromkeys(("task_accuracy_change", "model_compression_rate"), NO_CHOICES)
        return
    findings.values["task_accuracy_change"] = accuracy_change(correct, reference, _BFLOAT16)
    sizes["accuracy_bfloat16"] = 100 * float(reference.mean())
    if not reference.any():
        findings.missing["model_compression_rate"] = (
            "the bfloat16 model answers no test example rightly: there is no quality to compare with"
        )
        return
    pairs = np.stack([correct, reference], axis=1)
    shares = bootstrap_interval(
        pairs, lambda draws: draws[..., 0].sum(axis=1) / np.maximum(draws[..., 1].sum(axis=1), 1)
    )
    kept, ratio = float(correct.mean() / reference.mean()), whole / stored
    sizes["quality_kept"] = kept
    sizes["rate_in_memory"] = whole / held * kept
    findings.values["model_compression_rate"] = single(
        "model_compression_rate", ratio * kept, n=len(correct), interval=shares and (ratio * shares[0], ratio * shares[1]),
        method="stored bytes of bfloat16 over this cell's, times task accuracy over bfloat16's; paired bootstrap",
    )  # fmt: skip


def _in_bfloat16(configuration: Configuration, size: str, device: torch.device) -> Outcomes:
    """What evaluating the tuned model in bfloat16 gives; it is evaluated once."""
    decoder, base = subjects.reference(configuration, size, device), base_folder(size)
    key = evaluation_key(configuration, decoder, base)
    outcomes = kept(key)
    if outcomes is None:
        _, losses = perplexity_values(configuration, decoder, device, base)
        _, _, correct = task_values(configuration, decoder, device, base)
        outcomes = Outcomes(losses, correct)
        keep(key, outcomes)
    return outcomes
