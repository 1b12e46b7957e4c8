"""Parameters, floating-point operations and cache bytes of a decoder, from its structure."""

from dataclasses import dataclass

import torch

from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    Args:
        total: All, a tied matrix once.
        active: Those that take part in computing one token: of a mixture, the experts that a token is sent to.
        embedding: The token embedding, which is also the output head where they are tied.
    """

    total: int
    active: int
    embedding: int


def count_parameters(model: DecoderConfig | Decoder) -> Counts:
    """Counts the parameters of a decoder or of the one that a configuration describes."""
    decoder = _skeleton(model)
    total = _size(decoder)
    idle = sum(
        _size(part) - part.active_parameters()
        for block in decoder.blocks()
        for part in (block.mixer, block.feedforward)
    )
    return Counts(total, total - idle, decoder.embed_tokens.num_embeddings * decoder.embed_tokens.embedding_dim)


def flops_per_token(config: DecoderConfig, context: float, training: bool) -> float:
    """Floating-point operations that the mathematics of one token asks for; a multiply and an add are two.

    Counted are the matrices that multiply (the head included, look-ups and norms not) and the attention over the
    context. Training takes three forward passes' worth: the backward pass multiplies twice for each product. Recomputed
    activations do not count, so that utilisation figures stay comparable (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B).

    Args:
        config: The decoder.
        context: Tokens that the token attends to, itself included; for a causal window of T tokens the mean is
            (T + 1) / 2 (`mean_causal_context`).
        training: Whether to count forward and backward.
    """
    decoder = _skeleton(config)
    forward = 2.0 * config.hidden_size * config.vocabulary_size
    for block in decoder.blocks():
        forward += block.mixer.flops_per_token(context) + block.feedforward.flops_per_token()
    return 3 * forward if training else forward


def mean_causal_context(length: int) -> float:
    """Tokens that a token of a causal window of `length` tokens attends to on average."""
    return (length + 1) / 2


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
