"""Every attention row, and every family, learns within 300 steps to repeat what it has just read."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from efficientllm.models.build import build_decoder

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

WORDS, LENGTH, STEPS = 16, 12, 300
SPARSE = {
    "compression_block": 4, "compression_stride": 2, "selection_block": 4, "selected_blocks": 4, "sliding_window": 8,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "mqa": {"mixer": "mqa"},
    "gqa": {"mixer": "gqa"},
    "mla": {"mixer": "mla", "mixer_options": {"kv_lora_rank": 32}},
    "nsa": {"mixer": "nsa", "mixer_options": SPARSE},
    "pythia": {"block": "parallel", "mixer": "gpt_neox", "feedforward": "gelu", "key_value_heads": 4},
    "rwkv": {
        "block": "rwkv", "mixer": "rwkv7", "position": "none", "feedforward": "rwkv7_channel_mix",
        "mixer_options": {"head_size": 32, "chunk": 16},
    },
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_copies_from_its_context(make_config, row):
    torch.manual_seed(0)
    shape = {"vocabulary_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "tie_embeddings": False}
    decoder = build_decoder(make_config(**shape, embedding_deviation=1.0, **ROWS[row])).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)

    def sequences(count: int) -> torch.Tensor:
        half = torch.randint(WORDS, (count, LENGTH), generator=generator)
        return torch.cat((half, half), dim=1)

    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20, (STEPS - step) / 100)
        tokens = sequences(32)
        logits = decoder(tokens[:, :-1]).logits[:, LENGTH - 1 :]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, LENGTH:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        tokens = sequences(64)
        found = decoder(tokens[:, :-1]).logits[:, LENGTH - 1 :].argmax(dim=-1)
    accuracy = float((found == tokens[:, LENGTH:]).float().mean())
    assert accuracy > 0.9, f"{accuracy:.1%} of the repeated words; {1 / WORDS:.1%} by chance"
