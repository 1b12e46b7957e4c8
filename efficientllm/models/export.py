"""Decoders as models that Transformers ships, for other tools and for parity tests."""

from typing import TYPE_CHECKING, Any

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import cast_weights

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, MixtralForCausalLM

_RENAMED = {
    "mixer_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "mixer": "self_attn",
}


def to_transformers(decoder: Decoder) -> "LlamaForCausalLM | MixtralForCausalLM":
    """Copies a decoder into the Transformers model of the same mathematics.

    Args:
        decoder: Pre-norm, with `gqa`, `mqa` or `mha`, RoPE, and SwiGLU (Llama) or a mixture of experts (Mixtral).

    Returns:
        The model in evaluation mode, on the decoder's device and in its type.

    Raises:
        ParameterError: Transformers has no such model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    config = decoder.config
    convertible = (
        config.block == "pre_norm"
        and config.mixer in ("gqa", "mqa", "mha")
        and config.position == "rope"
        and config.feedforward in ("swiglu", "moe")
        and not config.mixer_options
        and not config.position_options.get("scaling")
    )
    if not convertible:
        raise ParameterError(
            f"a {config.block} decoder with {config.mixer}, {config.position} and {config.feedforward} has no equal in "
            "Transformers: only pre_norm with gqa, mqa or mha without options, rope, and swiglu or moe has (Llama, Mixtral)"
        )
    mixer: Any = decoder.blocks()[0].mixer
    shared = {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": mixer.key_value_heads,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": decoder.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.position.options.base},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model: Any
    if config.feedforward == "moe":
        options: Any = decoder.blocks()[0].feedforward.options
        model = MixtralForCausalLM(
            MixtralConfig(
                **shared,
                num_local_experts=options.experts,
                num_experts_per_tok=options.experts_per_token,
                # theirs pools all layers' tokens where ours adds the layers up: close to each other, not equal
                router_aux_loss_coef=options.load_balancing_weight * config.layers,
            )
        )
    else:
        model = LlamaForCausalLM(LlamaConfig(**shared))
    weight = decoder.embed_tokens.weight
    model = model.to(device=weight.device).eval()
    cast_weights(model, weight.dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameters[transformers_name(name)].copy_(parameter)
    return model


def transformers_name(name: str) -> str:
    """Translates a decoder's parameter name into Llama's or Mixtral's."""
    if name.startswith("lm_head."):
        return name
    parts = [_RENAMED.get(part, part) for part in name.split(".")]
    if "feedforward" in parts:
        place = parts.index("feedforward")
        leaf = parts[place + 1]
        if leaf == "router":
            parts[place:] = ["mlp", "gate", "weight"]
        elif leaf in ("gate_up_proj", "down_proj") and len(parts) == place + 2:
            parts[place:] = ["mlp", "experts", leaf]
        else:
            parts[place] = "mlp"
    return ".".join(["model", *parts])
