"""Small decoders for the tests of `models/`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

FAMILIES: dict[str, dict[str, Any]] = {
    "mqa": {"mixer": "mqa"},
    "gqa": {"mixer": "gqa"},
    "mha": {"mixer": "mha"},
    "mla": {"mixer": "mla", "mixer_options": {"kv_lora_rank": 12, "qk_rope_head_dim": 4}},
    "nsa": {
        "mixer": "nsa",
        "mixer_options": {
            "compression_block": 4, "compression_stride": 2, "selection_block": 4, "selected_blocks": 3,
            "sliding_window": 6,
        },
    },
    "relative": {"position": "relative", "position_options": {"buckets": 8, "max_distance": 12}},
    "pythia": {
        "block": "parallel", "mixer": "gpt_neox", "feedforward": "gelu", "key_value_heads": 4, "tie_embeddings": False,
        "mixer_options": {"rotary_fraction": 0.5},
    },
    "mamba2": {
        "mixer": "mamba2", "position": "none", "mixer_options": {"head_dim": 16, "state_size": 8, "chunk": 4},
    },
    "rwkv": {
        "block": "rwkv", "mixer": "rwkv7", "position": "none", "feedforward": "rwkv7_channel_mix",
        "mixer_options": {
            "head_size": 16, "chunk": 8, "decay_rank": 8, "learning_rate_rank": 8, "value_rank": 8, "gate_rank": 8,
        },
    },
}  # fmt: skip
"""Every mixer, each in the decoder that it is ranked in."""

MOE = {"experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.02}


def config_of(**changes: Any) -> DecoderConfig:
    """Describes a tiny decoder with some fields changed."""
    fields: dict[str, Any] = {
        "vocabulary_size": 61, "hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2,
        "intermediate_size": 48, "context_length": 64, "tie_embeddings": True, "block": "pre_norm",
        "mixer": "gqa", "position": "rope", "feedforward": "swiglu", "mixer_options": {}, "position_options": {},
        "feedforward_options": MOE if changes.get("feedforward") == "moe" else {},
    }  # fmt: skip
    return DecoderConfig(**{**fields, **changes})


def decoder_of(**changes: Any) -> Decoder:
    """Builds such a decoder, in evaluation mode, with weights large enough to tell errors."""
    torch.manual_seed(0)
    decoder = build_decoder(config_of(**changes)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.04)  # what starts at zero would hide faults of all that feeds it
            if parameter.dim() > 1:
                parameter.mul_(5)
            else:
                parameter.uniform_(0.5, 1.5)
    return decoder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., DecoderConfig]:
    """Returns `config_of`."""
    return config_of


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Decoder]:
    """Returns `decoder_of`."""
    return decoder_of


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids `[3, 17]` of the tiny vocabulary."""
    return torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(1))
