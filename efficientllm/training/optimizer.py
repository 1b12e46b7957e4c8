"""AdamW and its learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from efficientllm.config.schema import TrainingSettings
from efficientllm.errors import CellFailure
from efficientllm.models.decoder import Decoder


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Splits the trainable parameters: matrices decay; vectors (norms, biases, magnitudes) and embeddings do not.

    An embedding's row gets a gradient only when its token occurs, and its scale is that of activations, not of a
    matrix; so it wants a learning rate of its own (`embedding_learning_rate_scale`). One that is the output head too gets a
    gradient for every token, and is a matrix. Vectors side by side, which a module lists as `undecayed`, are vectors.

    Args:
        model: The model; frozen parameters are left out.
        settings: Supplies the matrices' decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) and the scale.
    """
    tables, vectors_by_name = set[int](), set[int]()
    for module in model.modules():
        vectors_by_name |= {id(getattr(module, name)) for name in getattr(module, "undecayed", ())}
        if isinstance(module, nn.Embedding):
            tables.add(id(module.weight))
    for module in model.modules():
        if isinstance(module, Decoder) and module.lm_head is None:
            tables.discard(id(module.embed_tokens.weight))
    embeddings, matrices, vectors = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            embeddings.append(parameter)
        elif parameter.ndim < 2 or id(parameter) in vectors_by_name:
            vectors.append(parameter)
        else:
            matrices.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "weight_decay": 0.0, "lr_scale": settings.embedding_learning_rate_scale},
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: Iterable[dict[str, Any]], settings: TrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """Builds AdamW; each group's `lr_scale` (default 1) multiplies the scheduled learning rate.

    `adamw` is torch's fused one, `adamw_8bit` that of `training/adamw_8bit.py`.

    Raises:
        CellFailure: `adamw_8bit` is asked for and the parameters do not lie on a GPU.
    """
    listed = [{"lr_scale": 1.0, **group} for group in groups]
    betas = (settings.beta1, settings.beta2)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=learning_rate, betas=betas, fused=True)
    if listed[0]["params"][0].device.type != "cuda":
        raise CellFailure("training.optimizer is adamw_8bit, which needs a CUDA GPU: set it to adamw")
    from efficientllm.training.adamw_8bit import UnwaitedAdamW8bit

    return UnwaitedAdamW8bit(listed, lr=learning_rate, betas=betas)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what an optimizer keeps beside the weights; complete after its first step.

    A tensor that several parameters share, as bitsandbytes' table of 8-bit numbers, counts once.
    """
    kept = {
        id(value): value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(tensor.nbytes for tensor in kept.values())


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
