"""Model shapes of the benchmarks, and how pretraining runs at them are trained."""

import argparse

from efficientllm.config.schema import Architecture, ArchitectureSettings, Shape, TrainingSettings
from efficientllm.models.build import decoder_config
from efficientllm.models.config import DecoderConfig

_CONTEXT = 2048


def _shape(hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int) -> Shape:
    return Shape(
        hidden_size=hidden, layers=layers, heads=heads, key_value_heads=key_value_heads, intermediate_size=intermediate,
        context_length=_CONTEXT, tie_embeddings=True, embedding_deviation=0.02,
    )  # fmt: skip


SHAPES: dict[str, tuple[int, dict[str, Shape]]] = {
    "tiny": (
        512,
        {
            "small": _shape(64, 2, 4, 2, 128),
            "medium": _shape(64, 3, 4, 2, 192),
            "large": _shape(128, 3, 4, 2, 256),
        },
    ),
    "medium": (
        50304,
        {
            "small": _shape(384, 6, 6, 2, 1536),
            "medium": _shape(768, 12, 12, 4, 2560),
            "large": _shape(1024, 24, 16, 4, 3584),
        },
    ),
    # Qwen2.5's shapes at 0.5, 1.5 and 3 billion parameters, which the EfficientLLM paper pretrains (arXiv 2505.13840)
    "paper": (
        151936,
        {
            "small": _shape(896, 24, 14, 2, 4864),
            "medium": _shape(1536, 28, 12, 2, 8960),
            "large": _shape(2048, 36, 16, 2, 11008),
        },
    ),
}
"""Vocabulary size and the dense shapes by name; 'medium' holds the 125-million-parameter class."""

_MOE = {"experts": 8, "experts_per_token": 2, "load_balancing_weight": 0.01}
_OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    # the paper's: latent of an eighth of the hidden size at heads of 128
    "mla": {"mixer": {"kv_lora_rank": 192, "qk_rope_head_dim": 64}},
    # the EfficientLLM paper's: window 128, blocks of 64, 4 of them selected; `nsa_original` has those of the NSA paper
    "nsa": {
        "mixer": {
            "compression_block": 64, "compression_stride": 32, "selection_block": 64, "selected_blocks": 4,
            "sliding_window": 128,
        }
    },
    "moe_small": {"feedforward": _MOE},
    "moe_medium": {"feedforward": _MOE},
}  # fmt: skip
_TINY_OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "mla": {"mixer": {"kv_lora_rank": 16}},
    "mamba": {"mixer": {"head_dim": 16, "state_size": 16, "chunk": 16}},
    "rwkv": {"mixer": {"head_size": 16}},
    "nsa": {
        "mixer": {
            "compression_block": 8, "compression_stride": 4, "selection_block": 8, "selected_blocks": 4,
            "sliding_window": 16,
        }
    },
}  # fmt: skip


def config_of(shape: str, name: str, choice: Architecture, context: int = _CONTEXT) -> DecoderConfig:
    """Returns the decoder of a pretraining run at a shape, its width solved as the pipeline solves it.

    Args:
        shape: A key of `SHAPES`.
        name: The pretraining run.
        choice: Its components.
        context: Longest sequence, for which learned positions have a parameter each.
    """
    vocabulary, sizes = SHAPES[shape]
    own = {**_OPTIONS.get(name, {}), **(_TINY_OPTIONS.get(name, {}) if shape == "tiny" else {})}
    settings = ArchitectureSettings(learning_rate=1e-4, **own)  # type: ignore[arg-type]
    size = sizes[choice.size].model_copy(update={"context_length": context})
    return decoder_config(choice, settings, size, vocabulary)


def training_settings(
    arguments: argparse.Namespace, *, batch_size: int, gradient_accumulation: int = 1, compiled: str = "auto"
) -> TrainingSettings:
    """Returns the settings of a training whose steps are timed: it neither ends, nor evaluates, nor keeps checkpoints.

    Args:
        arguments: The command line's, for the sequence's length, the optimizer and recomputation.
        batch_size: Sequences of a batch.
        gradient_accumulation: Batches of an optimizer step.
        compiled: The parameter `compile`.
    """
    return TrainingSettings(
        sequence_length=arguments.sequence, batch_size=batch_size, steps=10_000, warmup_steps=10,
        gradient_accumulation=gradient_accumulation, final_learning_rate_fraction=0.1,
        embedding_learning_rate_scale=1.0, weight_decay=0.1, beta1=0.9, beta2=0.95, gradient_clip=1.0, autocast="auto",
        compile=compiled, evaluation_steps=10_000, evaluation_sequences=1, checkpoint_seconds=86400.0,
        optimizer=arguments.optimizer, recompute_activations=arguments.recompute,
    )  # type: ignore[arg-type]  # fmt: skip
