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
        ("Qwen3", {"head_dim": 24, "rms_norm_eps": 1e-4}),
        ("Phi3", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
        ("GPTNeoX", {"rope_parameters": {"rope_type": "default", "rope_theta": 2000.0, "partial_rotary_factor": 0.5}}),
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
    expected, found = ([float(p.grad.norm()) for p in module.parameters()] for module in (model, decoder))
    assert sum(norm**2 for norm in found) == pytest.approx(sum(norm**2 for norm in expected), rel=1e-3)
    if len(found) == len(expected):  # nothing is fused
        assert sorted(found) == pytest.approx(sorted(expected), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("Llama", {"attention_bias": True}, "bias of its output projection"),
        ("Mistral", {"sliding_window": 16}, "sliding window"),
        ("Phi3", {"pad_token_id": 0, "sliding_window": 16}, "sliding window"),
        ("GPTNeoX", {"use_parallel_residual": False}, "blocks one after the other"),
        ("GPT2", {}, "models of type 'gpt2' cannot be read.* known are gpt_neox, llama"),
    ],
)
def test_what_cannot_be_imported_is_named(family, changes, message):
    import transformers

    with pytest.raises(ParameterError, match=message):
        imported_config(getattr(transformers, f"{family}Config")(**changes))
