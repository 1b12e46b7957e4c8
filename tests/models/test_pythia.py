"""The parallel block with GPT-NeoX attention equals Transformers' GPT-NeoX, logits and gradients."""

import pytest
import torch
from torch.nn import functional as F

PARTS = {"block": "parallel", "mixer": "gpt_neox", "feedforward": "gelu", "tie_embeddings": False, "key_value_heads": 4}
NAMES = {
    "embed_tokens": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "lm_head": "lm_head",
    "mixer_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm", "mixer.o_proj": "attention.dense",
    "feedforward.up_proj": "mlp.dense_h_to_4h", "feedforward.down_proj": "mlp.dense_4h_to_h",
}  # fmt: skip


def interleaved(parts: list[torch.Tensor], heads: int) -> torch.Tensor:
    """GPT-NeoX keeps each head's query, key and value rows together."""
    return torch.stack([part.view(heads, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 2)


def counterparts(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names and arranges our tensors as GPT-NeoX does."""
    renamed = {}
    for name, tensor in ours.items():
        stem, _, leaf = name.rpartition(".")
        if "_proj" in stem and stem[-6:-5] in ("k", "v"):
            continue
        if stem.endswith("q_proj"):
            parts = [ours[f"{stem[:-6]}{letter}_proj.{leaf}"] for letter in "qkv"]
            renamed[f"gpt_neox.{stem.replace('mixer.q_proj', 'attention.query_key_value')}.{leaf}"] = interleaved(
                parts, 4
            )
        elif stem.startswith("layers."):
            _, layer, part = stem.split(".", 2)
            renamed[f"gpt_neox.layers.{layer}.{NAMES[part]}.{leaf}"] = tensor
        else:
            renamed[f"{NAMES[stem]}.{leaf}"] = tensor
    return renamed


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_parity_with_gpt_neox(make_decoder, tokens, fraction):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    # heads of 16, so that a quarter is a pair of pairs
    decoder = make_decoder(**PARTS, hidden_size=64, mixer_options={"rotary_fraction": fraction})
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    settings = GPTNeoXConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, rope_parameters=rope, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(settings).eval()
    model.load_state_dict(counterparts(dict(decoder.named_parameters())))
    ours, theirs = decoder(tokens).logits, model(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    for logits in (ours, theirs):
        F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = counterparts({name: parameter.grad for name, parameter in decoder.named_parameters()})
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
