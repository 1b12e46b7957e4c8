"""Parameters, floating-point operations and cache bytes of a decoder, from its structure."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn

from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    Args:
        total: All, a tied matrix once.
        active: Those that take part in computing one token: of a mixture, the experts that a token is sent to.
    """

    total: int
    active: int


def count_parameters(model: DecoderConfig | Decoder) -> Counts:
    """Counts the parameters of a decoder or of the one that a configuration describes."""
    decoder = _skeleton(model)
    total = _size(decoder)
    idle = sum(
        _size(part) - part.active_parameters()
        for block in decoder.blocks()
        for part in (block.mixer, block.feedforward)
    )
    return Counts(total, total - idle)


def bytes_in_memory(module: nn.Module) -> int:
    """Bytes of parameters and buffers, and of the scales that bitsandbytes keeps beside packed weights."""
    tensors: dict[int, torch.Tensor] = {}

    def keep(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors[id(value)] = value
        elif dataclasses.is_dataclass(value) or hasattr(value, "absmax"):
            for part in vars(value).values():
                keep(part)

    for value in (*module.parameters(), *module.buffers()):
        keep(value)
        keep(getattr(value, "quant_state", None))
    return sum(tensor.nbytes for tensor in tensors.values())


def flops_per_token(config: DecoderConfig, contexts: Iterable[float], *, training: bool, scored: float = 1.0) -> float:
    """Floating-point operations that the mathematics of one token asks for; a multiply and an add are two.

    Counted are the matrices that multiply (the head included, look-ups and norms not) and the attention over the
    context. Training takes three forward passes' worth: the backward pass multiplies twice for each product. Recomputed
    activations do not count, so that utilisation figures stay comparable (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B).

    Args:
        config: The decoder.
        contexts: For each of the tokens that the mean is taken over, how many it attends to, itself included: 1 to T for
            a causal window of T tokens. The mean of the contexts would not do, as sparse attention is not linear in them.
        training: Whether to count forward and backward.
        scored: Share of the tokens whose logits are asked for; in tuning, those that bear loss.
    """
    decoder = _skeleton(config)
    seen = tuple(contexts)
    forward = scored * 2.0 * config.hidden_size * config.vocabulary_size
    means: dict[tuple[torch.Size, ...], float] = {}  # layers of the same matrices are counted once
    for block in decoder.blocks():
        shapes = tuple(parameter.shape for parameter in block.mixer.parameters())
        if shapes not in means:
            means[shapes] = fmean(map(block.mixer.flops_per_token, seen))
        forward += means[shapes] + block.feedforward.flops_per_token()
    return 3 * forward if training else forward


def cache_bytes_per_token(config: DecoderConfig, bytes_per_element: int) -> int:
    """Bytes by which a sequence's decoding cache grows with each token, over all layers.

    Args:
        config: The decoder.
        bytes_per_element: Size of a number of the cache: 4 for float32, 2 for 16-bit types.
    """
    blocks = _skeleton(config).blocks()
    return bytes_per_element * sum(block.mixer.cache_elements_per_token() for block in blocks)


def _skeleton(model: DecoderConfig | Decoder) -> Decoder:
    if isinstance(model, Decoder):
        return model
    with torch.device("meta"):
        return Decoder(model)


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
