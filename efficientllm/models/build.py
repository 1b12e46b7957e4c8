"""From parameters to a decoder whose size matches that of the dense model it is compared with."""

from dataclasses import replace
from typing import Any

import torch

from efficientllm.config.schema import Architecture, ArchitectureSettings, Shape
from efficientllm.errors import ParameterError
from efficientllm.models.accounting import count_parameters
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

TOLERANCE = 0.02
"""Largest relative difference in active parameters between an architecture and the dense model of its size."""

_DENSE = {"block": "pre_norm", "mixer": "gqa", "position": "rope", "feedforward": "swiglu"}
_GRANULARITIES = (64, 32, 16, 8, 4, 2, 1)


def build_decoder(config: DecoderConfig, *, device: Any = None, dtype: torch.dtype | None = None) -> Decoder:
    """Builds a decoder with fresh weights drawn from torch's default generator.

    Args:
        config: Shape and components.
        device: Where to build it; `meta` allocates nothing.
        dtype: Type of the weights; by default torch's default type.

    Raises:
        ParameterError: A component is unknown, or its options or the shape do not suit it.
    """
    previous = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype or previous)
        with torch.device(device or "cpu"):
            return Decoder(config)
    finally:
        torch.set_default_dtype(previous)


def decoder_config(
    choice: Architecture, settings: ArchitectureSettings, shape: Shape, vocabulary_size: int
) -> DecoderConfig:
    """Describes the decoder of a pretraining run.

    What differs from the dense model (pre-norm, GQA, RoPE, SwiGLU) gets the feed-forward width that brings its active
    parameters within 2 % of the dense model's: the dense width itself where it matches exactly, else the nearest
    multiple of the coarsest power of two, up to 64, that is close enough, since kernels favour round widths.

    Args:
        choice: The components.
        settings: The components' options.
        shape: Shape of the dense model.
        vocabulary_size: Size of the tokenizer.

    Raises:
        ParameterError: A component, an option or the shape is unfit, or no width matches.
    """
    if shape.vocabulary_size is not None and shape.vocabulary_size < vocabulary_size:
        raise ParameterError(
            f"vocabulary_size of the size is {shape.vocabulary_size}, but the tokenizer has {vocabulary_size} entries: "
            "raise it, or lower data.tokenizer.train_vocabulary_size"
        )
    sizes: dict[str, Any] = {**shape.model_dump(), "vocabulary_size": shape.vocabulary_size or vocabulary_size}
    tied = shape.tie_embeddings if settings.tie_embeddings is None else settings.tie_embeddings
    dense = DecoderConfig(**{**sizes, **_DENSE}, mixer_options={}, position_options={}, feedforward_options={})
    config = replace(
        dense,
        **choice.model_dump(exclude={"size"}),
        tie_embeddings=tied,
        mixer_options=dict(settings.mixer),
        position_options=dict(settings.position),
        feedforward_options=dict(settings.feedforward),
    )
    if config == dense:
        return dense
    return replace(config, intermediate_size=_matching_width(config, count_parameters(dense).active))


def _matching_width(config: DecoderConfig, target: int) -> int:
    """Solves for the feed-forward width; the number of parameters is affine in it."""

    def active(width: int) -> int:
        return count_parameters(replace(config, intermediate_size=width)).active

    if active(config.intermediate_size) == target:
        return config.intermediate_size
    slope = (active(128) - active(64)) / 64
    if slope <= 0:
        raise ParameterError(f"feedforward {config.feedforward!r} has no width to match the dense model's size with")
    ideal = config.intermediate_size + (target - active(config.intermediate_size)) / slope
    for granularity in _GRANULARITIES:
        width = round(ideal / granularity) * granularity
        if width >= granularity and abs(active(width) / target - 1) <= TOLERANCE:
            return width
    raise ParameterError(
        f"no feed-forward width gives mixer {config.mixer!r}, position {config.position!r}, feedforward "
        f"{config.feedforward!r} the {target} active parameters of the dense model within {TOLERANCE:.0%}: raise "
        "intermediate_size of this size, or lower context_length or the number of experts per token"
    )
