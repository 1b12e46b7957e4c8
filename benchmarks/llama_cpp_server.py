"""llama.cpp through its Python package, serving the same weights as the benchmark's other engines."""

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch

TYPES = {
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "float16": gguf.GGMLQuantizationType.F16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
"""GGUF's type of the linear layers by our name of a precision: blocks of 32 weights with one scale in the last two."""

_PART = 512  # prompt tokens that llama.cpp computes at once
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(model: Any, key: str, path: Path) -> int:
    """Writes a Llama of Transformers as a GGUF file without a vocabulary, its embedding in 16 bits as ours.

    Args:
        model: `LlamaForCausalLM` in bfloat16.
        key: One of `TYPES`.
        path: Where to.

    Returns:
        Bytes of the tensors.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    stored = 0

    def add(name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> None:
        nonlocal stored
        content = gguf.quants.quantize(np.ascontiguousarray(tensor.float().cpu().numpy()), kind)
        stored += content.nbytes
        writer.add_tensor(f"{name}.weight", content, raw_dtype=kind)

    sixteen = TYPES[key] if key in ("bfloat16", "float16") else TYPES["bfloat16"]
    add("token_embd", model.model.embed_tokens.weight, sixteen)
    if not config.tie_word_embeddings:
        add("output", model.lm_head.weight, sixteen)
    add("output_norm", model.model.norm.weight, gguf.GGMLQuantizationType.F32)
    for index, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if name not in _NAMES:
                continue
            weight = module.weight
            if name.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                # llama.cpp rotates neighbouring places of a head, Transformers those half a head apart
                weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            add(
                f"blk.{index}.{_NAMES[name]}", weight, TYPES[key] if weight.dim() > 1 else gguf.GGMLQuantizationType.F32
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


class LlamaCpp:
    """Greedy generation of forced length by llama.cpp.

    Args:
        path: A GGUF file.
        batch: Sequences served together.
        prompt: Tokens of each prompt.
        output: Tokens to generate.
        threads: Threads of the CPU.
    """

    def __init__(self, path: Path, batch: int, prompt: int, output: int, threads: int) -> None:
        self._shape = (batch, prompt, output)
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        chosen = llama_cpp.llama_model_default_params()
        chosen.n_gpu_layers = 999 if torch.cuda.is_available() else 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), chosen)
        settings = llama_cpp.llama_context_default_params()
        # each sequence has a cache of its own, whose length llama.cpp rounds up to 256
        settings.n_ctx, settings.n_seq_max = batch * (-(prompt + output) // 256 * -256), batch
        settings.n_batch = settings.n_ubatch = max(_PART, batch)
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings) if self._model else None
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot serve {path}")
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def close(self) -> None:
        """Frees the model and its cache."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        """Computes prompts `[B, P]` and returns the first generated token of each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch, length, _ = self._shape
        first = np.zeros(batch, np.int64)
        for row in range(batch):
            for start in range(0, length, _PART):
                places = range(start, min(start + _PART, length))
                last = places[-1] == length - 1
                found = self._decode(
                    [(prompts[row, place], place, row, last and place == places[-1]) for place in places]
                )
                if last:
                    first[row] = found[0]
        return first

    def decode(self, first: np.ndarray) -> np.ndarray:
        """Generates the tokens `[B, output - 1]` that follow the first ones."""
        _, prompt, output = self._shape
        found, current = [], first
        for step in range(output - 1):
            current = self._decode([(token, prompt + step, row, True) for row, token in enumerate(current)])
            found.append(current)
        return np.stack(found, axis=1)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Computes entries of token, position, sequence and whether its next token is wanted; returns those tokens."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, row, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = int(token), position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        wanted = [place for place, entry in enumerate(entries) if entry[3]]
        logits = [llama_cpp.llama_get_logits_ith(self._context, place) for place in wanted]
        return np.array([np.ctypeslib.as_array(row, (self._words,)).argmax() for row in logits])


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, data: ctypes.c_void_p) -> None:  # noqa: N802 - kept alive as a constant
    """llama.cpp tells what it does, tensor by tensor."""
