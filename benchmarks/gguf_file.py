"""Llamas of Transformers as GGUF files, as llama.cpp's own converter writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

FLOAT32 = gguf.GGMLQuantizationType.F32
BFLOAT16 = gguf.GGMLQuantizationType.BF16
TYPES = {
    "bfloat16": BFLOAT16,
    "float16": gguf.GGMLQuantizationType.F16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
"""GGUF's type of the linear layers by our name of a precision: blocks of 32 weights with one scale in the last two."""

_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def without_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Says that the file has no tokenizer."""
    writer.add_tokenizer_model("none")


def write_llama(
    path: Path,
    model: Any,
    *,
    linear: gguf.GGMLQuantizationType = FLOAT32,
    embedding: gguf.GGMLQuantizationType = FLOAT32,
    vocabulary: Callable[[gguf.GGUFWriter], None] = without_vocabulary,
) -> int:
    """Writes a model as a GGUF file.

    Args:
        path: Where to.
        model: `LlamaForCausalLM`.
        linear: Type of the layers' matrices.
        embedding: Type of the embedding and of an untied head.
        vocabulary: Adds the tokenizer.

    Returns:
        Bytes of the tensors.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary(writer)
    stored = 0
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float()
        part, layer = name.removeprefix("model.").removesuffix(".weight"), ""
        if part.startswith("layers."):
            _, number, part = part.split(".", 2)
            layer = f"blk.{number}."
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
            # llama.cpp rotates neighbouring places of a head, Transformers those half a head apart
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        kind = FLOAT32 if weight.dim() == 1 else linear if layer else embedding
        content = gguf.quants.quantize(np.ascontiguousarray(weight.cpu().numpy()), kind)
        stored += content.nbytes
        writer.add_tensor(f"{layer}{_NAMES[part]}.weight", content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
