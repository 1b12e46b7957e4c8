"""Imported models compute what Transformers computes."""

from typing import Any

import pytest
import torch

from efficientllm.errors import ParameterError
from efficientllm.models.imports import from_transformers, imported_config

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def made(family: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.uniform_(-1.0, 1.5)
    return model


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"rms_norm_eps": 1e-3}),
        ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
        ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("Mistral", {"head_dim": 24, "sliding_window": None}),
    ],
)
def test_logits_and_gradients(family, changes):
    model = made(family, **changes)
    decoder = from_transformers(model)
    tokens = torch.randint(61, (2, 150), generator=torch.Generator().manual_seed(1))
    ours, theirs = decoder(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for logits in (ours, theirs):
        logits.square().mean().backward()
    expected = [parameter.grad.norm() for parameter in model.parameters()]
    found = [parameter.grad.norm() for parameter in decoder.parameters()]
    torch.testing.assert_close(sorted(map(float, found)), sorted(map(float, expected)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("Llama", {"attention_bias": True}, "bias of its output projection"),
        ("Mistral", {"sliding_window": 16}, "sliding window"),
        ("GPTNeoX", {}, "models of type 'gpt_neox' cannot be read"),
    ],
)
def test_what_cannot_be_imported_is_named(family, changes, message):
    import transformers

    with pytest.raises(ParameterError, match=message):
        imported_config(getattr(transformers, f"{family}Config")(**changes))
