"""Models that Transformers ships as decoders of ours, which then train, tune and serve by the same code as our own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Family:
    """How a family is described, and how its tensors are called and arranged, in our terms."""

    config: Callable[[Any], DecoderConfig]
    tensors: Callable[[Mapping[str, torch.Tensor], DecoderConfig], _Tensors]


def imported_config(config: "PretrainedConfig") -> DecoderConfig:
    """Describes a Transformers model in our terms.

    Args:
        config: Of a model of one of the families that `known_families` lists.

    Raises:
        ParameterError: The family is another one, or the model has a part that ours lack.
    """
    return _family(config).config(config)


def known_families() -> list[str]:
    """Lists the `model_type` of all models that can be read."""
    return sorted(_FAMILIES)


def from_transformers(model: "PreTrainedModel") -> Decoder:
    """Copies a Transformers model into a decoder of the same mathematics, in evaluation mode.

    Args:
        model: A causal language model of a known family, with plain weights.

    Raises:
        ParameterError: It has parts that ours lack.
    """
    config = imported_config(model.config)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if config.tie_embeddings and not torch.equal(head, embeddings):
        # Transformers leaves a head alone that a checkpoint stores beside other embeddings, whatever its config.json says
        config = replace(config, tie_embeddings=False)
    decoder = build_decoder(config, device="meta").to_empty(device=model.device)
    decoder = decoder.to(model.dtype)
    found = _family(model.config).tensors(model.state_dict(), config)
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


def _family(config: "PretrainedConfig") -> _Family:
    family = config.model_type
    if family not in _FAMILIES:
        raise ParameterError(
            f"models of type {family!r} cannot be read as a decoder of ours: known are {', '.join(known_families())}"
        )
    return _FAMILIES[family]


def _refuse(family: str, *unfit: tuple[bool, str]) -> None:
    """Raises an error for the first part of a model that ours lack."""
    for present, what in unfit:
        if present:
            raise ParameterError(f"this {family} model has {what}")


def _llama_config(content: Any) -> DecoderConfig:
    """Llama and what is built like it: Mistral, Qwen2 (biases), Qwen3 (normalized queries and keys), Phi-3."""
    family = content.model_type
    rope = dict(content.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    _refuse(
        family,
        (content.hidden_act != "silu", f"hidden_act {content.hidden_act!r}, and ours have silu"),
        (_window(content) < content.max_position_embeddings, "a sliding window, which ours lack"),
        (bool(getattr(content, "mlp_bias", False)), "biases in its feed-forward layers, which ours lack"),
        (kind not in ("default", "llama3"), f"rope_type {kind!r}"),
        (
            rope.get("partial_rotary_factor", 1.0) != 1.0,
            "a rotation of parts of its heads, which ours of this kind lack",
        ),
        (
            family != "qwen2" and bool(getattr(content, "attention_bias", False)),
            "a bias of its output projection, which ours lack",
        ),
    )
    mixer: dict[str, Any] = {}
    if family == "qwen2":
        mixer["bias"] = True
    if family == "qwen3":
        mixer["qk_norm"] = True
    head_dim = getattr(content, "head_dim", None)
    if head_dim and head_dim * content.num_attention_heads != content.hidden_size:
        mixer["head_dim"] = head_dim
    position: dict[str, Any] = {"base": float(rope["rope_theta"])}
    if kind == "llama3":
        position["scaling"] = {
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
        feedforward="swiglu", mixer_options=mixer, position_options=position, feedforward_options={},
        norm_epsilon=content.rms_norm_eps,
    )  # fmt: skip


def _window(config: Any) -> int:
    """Tokens that a model's attention reaches back."""
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return int(window) if window and used else int(config.max_position_embeddings)


_LLAMA_NAMES = {
    "model.embed_tokens.": "embed_tokens.",
    "model.layers.": "layers.",
    "model.norm.": "norm.",
    ".input_layernorm.": ".mixer_norm.",
    ".post_attention_layernorm.": ".feedforward_norm.",
    ".self_attn.": ".mixer.",
    ".mlp.": ".feedforward.",
}


def _llama_tensors(state: Mapping[str, torch.Tensor], config: DecoderConfig) -> _Tensors:
    del config
    return {_renamed(name, _LLAMA_NAMES): tensor for name, tensor in state.items()}


def _phi3_tensors(state: Mapping[str, torch.Tensor], config: DecoderConfig) -> _Tensors:
    """Phi-3 keeps queries, keys and values in one matrix, and the two halves of SwiGLU in another."""
    head_dim = config.mixer_options.get("head_dim", config.head_dim)
    query, shared = config.heads * head_dim, config.key_value_heads * head_dim
    found: _Tensors = {}
    for name, tensor in _llama_tensors(state, config).items():
        if ".qkv_proj." in name:
            parts = tensor.split((query, shared, shared))
            found |= {name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in zip("qkv", parts, strict=True)}
        elif ".gate_up_proj." in name:
            gate, up = tensor.chunk(2)
            found |= {name.replace("gate_up_proj", "gate_proj"): gate, name.replace("gate_up_proj", "up_proj"): up}
        else:
            found[name] = tensor
    return found


def _gpt_neox_config(content: Any) -> DecoderConfig:
    """GPT-NeoX and Pythia: attention and feed-forward layer side by side."""
    rope = dict(content.rope_parameters or {})
    _refuse(
        content.model_type,
        (not content.use_parallel_residual, "blocks one after the other, where ours of this kind stand side by side"),
        (content.hidden_act != "gelu", f"hidden_act {content.hidden_act!r}, and ours have the exact gelu"),
        (not content.attention_bias, "no biases in its attention, where ours of this kind have them"),
        (content.layer_norm_eps != _LAYER_NORM_EPSILON, f"layer_norm_eps {content.layer_norm_eps}"),
        (rope.get("rope_type", "default") != "default", f"rope_type {rope.get('rope_type')!r}"),
    )
    fraction = float(rope.get("partial_rotary_factor", getattr(content, "rotary_pct", 0.25)))
    return DecoderConfig(
        vocabulary_size=content.vocab_size, hidden_size=content.hidden_size, layers=content.num_hidden_layers,
        heads=content.num_attention_heads, key_value_heads=content.num_attention_heads,
        intermediate_size=content.intermediate_size, context_length=content.max_position_embeddings,
        tie_embeddings=content.tie_word_embeddings, block="parallel", mixer="gpt_neox", position="rope",
        feedforward="gelu", mixer_options={"rotary_fraction": fraction},
        position_options={"base": float(rope["rope_theta"])}, feedforward_options={},
    )  # fmt: skip


_LAYER_NORM_EPSILON = 1e-5

_GPT_NEOX_NAMES = {
    "gpt_neox.embed_in.": "embed_tokens.",
    "gpt_neox.layers.": "layers.",
    "gpt_neox.final_layer_norm.": "norm.",
    "embed_out.": "lm_head.",
    ".input_layernorm.": ".mixer_norm.",
    ".post_attention_layernorm.": ".feedforward_norm.",
    ".attention.dense.": ".mixer.o_proj.",
    ".attention.": ".mixer.",
    ".mlp.dense_h_to_4h.": ".feedforward.up_proj.",
    ".mlp.dense_4h_to_h.": ".feedforward.down_proj.",
}


def _gpt_neox_tensors(state: Mapping[str, torch.Tensor], config: DecoderConfig) -> _Tensors:
    """GPT-NeoX keeps each head's query, key and value rows together."""
    found: _Tensors = {}
    for name, tensor in state.items():
        ours = _renamed(name, _GPT_NEOX_NAMES)
        if ".query_key_value." in ours:
            per_head = tensor.unflatten(0, (config.heads, 3, -1))
            parts = (per_head[:, part].flatten(0, 1) for part in range(3))
            found |= {
                ours.replace("query_key_value", f"{part}_proj"): rows for part, rows in zip("qkv", parts, strict=True)
            }
        else:
            found[ours] = tensor
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(_llama_config, _llama_tensors),
    "mistral": _Family(_llama_config, _llama_tensors),
    "qwen2": _Family(_llama_config, _llama_tensors),
    "qwen3": _Family(_llama_config, _llama_tensors),
    "phi3": _Family(_llama_config, _phi3_tensors),
    "gpt_neox": _Family(_gpt_neox_config, _gpt_neox_tensors),
}
