"""The serving engine's tokens are those of Transformers' greedy `generate`."""

import pytest
import torch

from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.serving.engine import generate


@pytest.mark.parametrize("mixer", ["gqa", "mqa", "mha"])
@pytest.mark.parametrize(
    ("position", "feedforward"), [("rope", "swiglu"), ("sinusoidal", "swiglu"), ("learned", "moe")]
)
def test_tokens_equal_transformers_generate(mixer: str, position: str, feedforward: str) -> None:
    from efficientllm.models.transformers_adapter import EfficientLLMConfig, EfficientLLMForCausalLM

    torch.manual_seed(0)
    options = {"experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.01} if feedforward == "moe" else {}
    config = DecoderConfig(
        vocabulary_size=50, hidden_size=32, layers=2, heads=4, key_value_heads=4 if mixer == "mha" else 2,
        intermediate_size=64, context_length=64, tie_embeddings=False, block="pre_norm", mixer=mixer,
        position=position, feedforward=feedforward, mixer_options={}, position_options={}, feedforward_options=options,
    )  # fmt: skip
    decoder = build_decoder(config).eval()
    model = EfficientLLMForCausalLM(EfficientLLMConfig(**config.to_dict())).eval()
    model.decoder.load_state_dict(decoder.state_dict())
    prompts = torch.randint(50, (3, 7))
    found = generate(decoder, prompts, 9, time_tokens=True)
    expected = model.generate(prompts, max_new_tokens=9, min_new_tokens=9, do_sample=False)
    assert torch.equal(found.tokens, expected[:, 7:])
    assert len(found.token_times) == 9
    assert found.token_times == sorted(found.token_times)
