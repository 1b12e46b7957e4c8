"""The serving engine's tokens are those of Transformers' greedy `generate`, for every mixer."""

from typing import Any

import pytest
import torch

from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.serving.engine import GreedyEngine
from tests.models.conftest import FAMILIES

MOE = {"experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.01}
CHANGES: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "sinusoidal": {"position": "sinusoidal"},
    "learned-moe": {"position": "learned", "feedforward": "moe", "feedforward_options": MOE},
}


def made(make_config: Any, changes: dict[str, Any]) -> Decoder:
    torch.manual_seed(0)
    decoder = build_decoder(make_config(**changes)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return decoder


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_tokens_equal_transformers_generate(make_config: Any, changes: dict[str, Any]) -> None:
    from efficientllm.models.transformers_adapter import EfficientLLMConfig, EfficientLLMForCausalLM

    decoder = made(make_config, changes)
    model = EfficientLLMForCausalLM(EfficientLLMConfig(**decoder.config.to_dict())).eval()
    model.decoder.load_state_dict(decoder.state_dict())
    engine = GreedyEngine(decoder, 3, 7, 9)
    assert engine.execution == "launched kernel by kernel"
    for seed in range(2):  # a second batch must not see the first one's state
        prompts = torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(seed))
        found = engine.generate(prompts, time_tokens=True)
        expected = model.generate(prompts, max_new_tokens=9, min_new_tokens=9, do_sample=False)
        assert torch.equal(found.tokens, expected[:, 7:])
        assert found.token_times == sorted(found.token_times)
        assert len(found.token_times) == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_graphs_give_the_same_tokens(make_config: Any, changes: dict[str, Any]) -> None:
    decoder = made(make_config, changes)
    prompts = torch.randint(61, (3, 7))
    expected = GreedyEngine(decoder, 3, 7, 9).generate(prompts).tokens
    engine = GreedyEngine(decoder.cuda(), 3, 7, 9)
    assert engine.execution.startswith("CUDA graphs")
    for _ in range(2):
        assert torch.equal(engine.generate(prompts.cuda()).tokens.cpu(), expected)
