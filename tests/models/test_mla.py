"""Multi-head latent attention equals Transformers' DeepSeek-V3 attention, and caches only its latents."""

import pytest
import torch

from efficientllm.models.accounting import cache_bytes_per_token
from efficientllm.models.build import build_decoder
from efficientllm.models.components import component
from efficientllm.models.interfaces import Span

OPTIONS = {"kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
NAMES = {
    "q_proj": "q_proj", "kv_a_proj": "kv_a_proj_with_mqa", "kv_a_norm": "kv_a_layernorm", "kv_b_proj": "kv_b_proj",
    "o_proj": "o_proj",
}  # fmt: skip
WITH_QUERY_LATENT = {**NAMES, "q_proj": "q_b_proj", "q_a_proj": "q_a_proj", "q_a_norm": "q_a_layernorm"}


@pytest.mark.parametrize("query_rank", [None, 10])
@pytest.mark.parametrize("length", [1, 17])
def test_parity_with_deepseek(make_config, query_rank, length):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    torch.manual_seed(0)
    names = NAMES if query_rank is None else WITH_QUERY_LATENT
    config = make_config(mixer="mla", mixer_options={**OPTIONS, "q_lora_rank": query_rank})
    ours = component("mixer", "mla")(config)
    rope = component("position", "rope")(config)
    settings = DeepseekV3Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=query_rank, rope_interleave=False,
        max_position_embeddings=64, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **OPTIONS,
    )  # fmt: skip
    theirs = DeepseekV3Attention(settings, 0)
    ours_by_name, theirs_by_name = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert {f"{names[name.split('.')[0]]}.weight" for name in ours_by_name} == set(theirs_by_name)
    with torch.no_grad():
        for name, parameter in ours_by_name.items():
            parameter.normal_(std=0.3)
            theirs_by_name[f"{names[name.split('.')[0]]}.weight"].copy_(parameter)
    x = torch.randn(3, length, 32, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    span = Span(0, length, causal=length > 1)
    span.rotation = rope.rotation(span, 4, x)
    found = ours(x, span, None)
    angles = DeepseekV3RotaryEmbedding(settings)(y, torch.arange(length)[None])
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    expected = theirs(y, position_embeddings=angles, attention_mask=mask)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in ours_by_name.items():
        reference = theirs_by_name[f"{names[name.split('.')[0]]}.weight"]
        # the default RMSNorm epsilon differs by nothing: both are 1e-6
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-4, atol=1e-5)


def test_cache_holds_latents_alone(make_config):
    config = make_config(mixer="mla", mixer_options=OPTIONS)
    assert cache_bytes_per_token(config, 2) == 2 * config.layers * (12 + 4)
    assert cache_bytes_per_token(config, 2) < cache_bytes_per_token(make_config(mixer="gqa"), 2)


def test_default_widths_are_deepseeks(make_config):
    mixer = build_decoder(make_config(mixer="mla")).blocks()[0].mixer
    assert (mixer.latent_dim, mixer.plain_dim, mixer.rotary_dim, mixer.value_dim) == (32, 8, 4, 8)
