"""Sources of bases: a small Llama, a tokenizer, and the parameters that name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientllm.config.load import Configuration, read_yaml
from efficientllm.config.schema import Parameters, Profile
from efficientllm.data.tokenizer import save_tokenizer, train_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog; naïve words, 1234 numbers. "


def configuration(source: str | Path) -> Configuration:
    """The run's parameters with this source as the small base."""
    content = read_yaml(Path("params.yaml")) | {"profile": "smoke", "sizes": ["small"], "bases": {"small": str(source)}}
    profile = Profile.model_validate(read_yaml(Path("profiles/smoke.yaml")))
    return Configuration(Parameters.model_validate(content), profile)


def tokenizer_folder(folder: Path, vocabulary: int = 300) -> int:
    tokenizer = train_tokenizer([TEXT * 50], vocabulary)
    save_tokenizer(folder, tokenizer)
    return tokenizer.vocabulary_size


def llama(vocabulary: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def write_gguf(path: Path, model: Any, backend: Any, further: dict[str, np.ndarray] | None = None) -> None:
    """Writes a Llama with its vocabulary, and further tensors."""
    pytest.importorskip("gguf")
    from gguf_file import write_llama

    def vocabulary(writer: Any) -> None:
        content = json.loads(backend.to_str())["model"]
        tokens = sorted(backend.get_vocab(with_added_tokens=True), key=backend.get_vocab(with_added_tokens=True).get)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in content["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        for name, content in (further or {}).items():
            writer.add_tensor(name, content)

    write_llama(path, model, vocabulary=vocabulary)
