"""Bytes of a decoding step, against what the model's equations say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.serving.bandwidth import copy_bandwidth
from efficientllm.serving.traffic import decoding_traffic
from tests.models.conftest import FAMILIES

Make = Callable[..., Any]
BATCH, LONGEST, CONTEXT = 3, 40, 30


def built(make_config: Make, **changes: Any) -> Decoder:
    return build_decoder(make_config(**changes)).eval().requires_grad_(False)


def cache_bytes(decoder: Decoder, context: float = CONTEXT) -> float:
    return decoding_traffic(decoder, decoder.new_cache(BATCH, LONGEST), context).cache


def test_a_tied_embedding_is_read_whole_and_an_untied_one_row_by_row(make_config: Make) -> None:
    tied, untied = built(make_config, tie_embeddings=True), built(make_config, tie_embeddings=False)
    row = 32 * 4
    assert decoding_traffic(tied, tied.new_cache(BATCH, 8), 5).weights == bytes_in_memory(tied)
    found = decoding_traffic(untied, untied.new_cache(BATCH, 8), 5).weights
    assert found == bytes_in_memory(untied) - (61 - BATCH) * row == bytes_in_memory(tied) + BATCH * row


@pytest.mark.parametrize(
    ("family", "numbers"), [("mqa", 2 * 8), ("gqa", 2 * 2 * 8), ("mha", 2 * 4 * 8), ("mla", 12 + 4)]
)
def test_attention_reads_its_cache_token_by_token(make_config: Make, family: str, numbers: int) -> None:
    decoder = built(make_config, **FAMILIES[family])
    assert cache_bytes(decoder) == 2 * 4 * numbers * BATCH * CONTEXT
    assert cache_bytes(decoder, CONTEXT / 2) == cache_bytes(decoder) / 2


@pytest.mark.parametrize("family", ["mamba2", "rwkv"])
def test_a_recurrent_state_is_read_whole_at_every_length(make_config: Make, family: str) -> None:
    decoder = built(make_config, **FAMILIES[family])
    whole = decoder.new_cache(BATCH, LONGEST).nbytes()
    assert cache_bytes(decoder, 2) == cache_bytes(decoder, CONTEXT) == whole


def test_sparse_attention_reads_blocks_and_windows(make_config: Make) -> None:
    decoder = built(make_config, **FAMILIES["nsa"])
    entry = 2 * 2 * 8 * 4  # a key and a value of two heads of eight numbers
    compressed = (CONTEXT - 4) // 2 + 1
    assert cache_bytes(decoder) == 2 * BATCH * entry * (3 + compressed + 3 * 4 + 6)
    assert cache_bytes(decoder, 5) == 2 * BATCH * entry * (3 + 1 + 5 + 5)


def test_rows_that_pad_a_cache_are_not_read(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efficientllm.models.decoder.reads_whole_rows", lambda *_: True)
    decoder = built(make_config, **FAMILIES["mla"])
    assert decoder.new_cache(BATCH, LONGEST).nbytes() == 2 * 4 * 16 * BATCH * (LONGEST + 8)
    assert cache_bytes(decoder) == 2 * 4 * 16 * BATCH * CONTEXT


def test_of_learned_positions_one_row_is_read(make_config: Make) -> None:
    decoder = built(make_config, position="learned")
    found = decoding_traffic(decoder, decoder.new_cache(BATCH, LONGEST), CONTEXT).weights
    assert found == bytes_in_memory(decoder) - (64 - 1) * 32 * 4


def test_sparse_attention_compresses_at_every_stride_only(make_config: Make) -> None:
    decoder = built(make_config, **FAMILIES["nsa"])
    block, width = 4, 8
    compression = block * width + (block * width + 1) * width + (width + 1) * width
    found = decoding_traffic(decoder, decoder.new_cache(BATCH, LONGEST), CONTEXT).weights
    assert found == bytes_in_memory(decoder) - 2 * 2 * compression * 4 / 2, (
        "of two layers' keys and values, every second step"
    )


def test_experts_that_no_token_goes_to_are_not_read(make_config: Make) -> None:
    options = {"experts": 8, "experts_per_token": 2, "load_balancing_weight": 0.0}
    decoder = built(make_config, feedforward="moe", feedforward_options=options)
    experts = 2 * 8 * 3 * 32 * 48 * 4
    for batch in (1, 4, 64):
        found = decoding_traffic(decoder, decoder.new_cache(batch, 8), 5).weights
        assert found == pytest.approx(bytes_in_memory(decoder) - experts * 0.75**batch)


def test_bandwidth_is_measured_once_and_plausible() -> None:
    found = copy_bandwidth(torch.device("cpu"))
    assert found is copy_bandwidth(torch.device("cpu"))
    assert found.copies >= 3
    assert 1e8 < found.bytes_per_second < 1e13
