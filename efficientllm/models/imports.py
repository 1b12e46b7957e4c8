"""Models that Transformers ships as decoders of ours, which then train, tune and serve by the same code as our own."""

from typing import TYPE_CHECKING, Any

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FAMILIES = ("llama", "mistral", "qwen2")

_RENAMED = {
    "model.embed_tokens.": "embed_tokens.",
    "model.layers.": "layers.",
    "model.norm.": "norm.",
    ".input_layernorm.": ".mixer_norm.",
    ".post_attention_layernorm.": ".feedforward_norm.",
    ".self_attn.": ".mixer.",
    ".mlp.": ".feedforward.",
}


def imported_config(config: "PretrainedConfig") -> DecoderConfig:
    """Describes a Transformers model in our terms.

    Args:
        config: Of a Llama, a Mistral or a Qwen2 model.

    Raises:
        ParameterError: The family is another one, or the model has a part that ours lack.
    """
    content: Any = config
    family = content.model_type
    if family not in _FAMILIES:
        raise ParameterError(
            f"models of type {family!r} cannot be read as a decoder of ours: known are {', '.join(_FAMILIES)}"
        )
    rope = dict(content.rope_parameters or {})
    for unfit, what in (
        (content.hidden_act != "silu", f"hidden_act {content.hidden_act!r}, and ours have silu"),
        (_window(content) < content.max_position_embeddings, "a sliding window, which ours lack"),
        (getattr(content, "mlp_bias", False), "biases in its feed-forward layers, which ours lack"),
        (rope.get("rope_type", "default") not in ("default", "llama3"), f"rope_type {rope.get('rope_type')!r}"),
        (family == "llama" and content.attention_bias, "a bias of its output projection, which ours lack"),
    ):
        if unfit:
            raise ParameterError(f"this {family} model has {what}")
    mixer_options: dict[str, Any] = {"bias": family == "qwen2"}
    head_dim = getattr(content, "head_dim", None)
    if head_dim and head_dim * content.num_attention_heads != content.hidden_size:
        mixer_options["head_dim"] = head_dim
    position_options: dict[str, Any] = {"base": float(rope["rope_theta"])}
    if rope.get("rope_type") == "llama3":
        position_options["scaling"] = {
            "factor": float(rope["factor"]),
            "low_frequency_factor": float(rope["low_freq_factor"]),
            "high_frequency_factor": float(rope["high_freq_factor"]),
            "original_context": int(rope["original_max_position_embeddings"]),
        }
    return DecoderConfig(
        vocabulary_size=content.vocab_size, hidden_size=content.hidden_size, layers=content.num_hidden_layers,
        heads=content.num_attention_heads, key_value_heads=content.num_key_value_heads or content.num_attention_heads,
        intermediate_size=content.intermediate_size, context_length=content.max_position_embeddings,
        tie_embeddings=content.tie_word_embeddings, block="pre_norm", mixer="gqa", position="rope",
        feedforward="swiglu", mixer_options={k: v for k, v in mixer_options.items() if v},
        position_options=position_options, feedforward_options={}, norm_epsilon=content.rms_norm_eps,
    )  # fmt: skip


def _window(config: Any) -> int:
    """Tokens that a model's attention reaches back."""
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return int(window) if window and used else int(config.max_position_embeddings)


def from_transformers(model: "PreTrainedModel") -> Decoder:
    """Copies a Transformers model into a decoder of the same mathematics, in evaluation mode.

    Args:
        model: A Llama, Mistral or Qwen2 for causal language modelling, with plain weights.

    Raises:
        ParameterError: It has parts that ours lack.
    """
    decoder = build_decoder(imported_config(model.config), device="meta").to_empty(device=model.device)
    decoder = decoder.to(model.dtype)
    found = {decoder_name(name): tensor for name, tensor in model.state_dict().items()}
    if decoder.lm_head is None:
        found.pop("lm_head.weight", None)
    expected = decoder.state_dict()
    unknown, missing = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    if unknown or missing:
        fault = f"a weight {unknown[0]!r} that ours lack" if unknown else f"no weight for {missing[0]!r}"
        raise ParameterError(f"this {model.config.model_type} model has {fault}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
    return decoder.eval()


def decoder_name(name: str) -> str:
    """Translates the name of a Llama's parameter into ours."""
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name
