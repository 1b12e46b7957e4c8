"""What a technique saves in stored bytes, weighed by what it keeps of the quality."""

import numpy as np
import torch

from efficientllm import registry
from efficientllm.bases.base import RANDOM, base_folder
from efficientllm.config import Configuration
from efficientllm.measurement import subjects
from efficientllm.measurement.findings import Findings
from efficientllm.measurement.quality import task_values
from efficientllm.measurement.statistics import bootstrap_interval, single


def compression_values(
    configuration: Configuration,
    axis: registry.Axis,
    cell: str,
    correct: np.ndarray | None,
    device: torch.device,
    findings: Findings,
) -> None:
    """Adds the model compression rate: of stored bytes, for quantization times the quality that is left.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.
        correct: 1.0 or 0.0 for each test example of the task; None where there is no task.
        device: Where the model that the cell is compared with is evaluated.
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
        return
    if configuration.profile.random_weights:
        findings.missing[key] = RANDOM
        return
    original = subjects.reference(configuration, size, device)
    _, _, reference = task_values(configuration, original, device, base_folder(size))
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
