"""AdamW and its learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from efficientllm.config.schema import TrainingSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters: matrices decay, vectors (norms, biases, magnitudes) do not.

    Args:
        model: The model; frozen parameters are left out.
        weight_decay: Decoupled weight decay of the matrices (Loshchilov and Hutter, arXiv 1711.05101).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: Iterable[dict[str, Any]], settings: TrainingSettings, learning_rate: float
) -> torch.optim.AdamW:
    """Builds fused AdamW; each group's `lr_scale` (default 1) multiplies the scheduled learning rate."""
    listed = [{"lr_scale": 1.0, **group} for group in groups]
    return torch.optim.AdamW(listed, lr=learning_rate, betas=(settings.beta1, settings.beta2), fused=True)


def learning_rate_at(step: int, peak: float, settings: TrainingSettings) -> float:
    """Linear warm-up, then cosine decay to `final_learning_rate_fraction` of the peak at the last step.

    Args:
        step: Optimizer step, from 0.
        peak: Learning rate at the end of the warm-up.
        settings: `steps`, `warmup_steps` and `final_learning_rate_fraction`.
    """
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    floor = settings.final_learning_rate_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
