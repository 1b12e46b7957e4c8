"""Points of the curves: what each says, and that one which cannot be measured says why."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm.config.schema import MeasureSettings
from efficientllm.models.build import build_decoder
from efficientllm.models.decoder import Decoder
from efficientllm.serving import curves
from efficientllm.serving.bandwidth import Bandwidth

SETTINGS = MeasureSettings(
    warmup_seconds=0.01, warmup_calls=1, window_seconds=0.01, window_calls=1, window_steps=1, memory_seconds=0, idle_seconds=0.01,
    repeats=1, cooldown_seconds=0.0, allow_shared=True, serving_batch_size=2, serving_prompt_length=8,
    serving_output_length=4, serving_batches=[1, 4], serving_contexts=[4, 60], serving_curve_tokens=3,
    serving_curve_seconds=0.001, evaluation_batch_size=1, perplexity_windows=2, country_iso_code="USA",
)  # fmt: skip


class Meter:
    source = "measured"
    fault: str | None = None

    @contextlib.contextmanager
    def window(self) -> Iterator[Any]:
        yield SimpleNamespace(joules=12.0, seconds=1.0, fault=self.fault)


def prompts(batch: int, length: int) -> torch.Tensor:
    return torch.zeros(batch, length, dtype=torch.long)


def measured(decoder: Decoder, **changes: Any) -> dict[str, Any]:
    settings = SETTINGS.model_copy(update=changes)
    return curves.serving_curves(decoder, settings, prompts, Meter(), Bandwidth(1e9, 1, 3))  # type: ignore[arg-type]


@pytest.fixture
def decoder(make_config: Any) -> Decoder:
    return build_decoder(make_config(context_length=64)).eval().requires_grad_(False)


def test_points_stand_at_the_settings_and_agree_with_themselves(decoder: Decoder) -> None:
    found = measured(decoder, serving_contexts=[4, 32])
    assert [(point["batch"], point["context"]) for point in found["batches"]] == [(1, 8), (4, 8)]
    assert [(point["batch"], point["context"]) for point in found["contexts"]] == [(2, 4), (2, 32)]
    assert found["energy_source"] is None
    for point in found["batches"] + found["contexts"]:
        assert point["tokens_per_second"] == pytest.approx(point["batch"] / point["inter_token_latency_s"])
        # two layers, a key and a value of two heads of eight float32 numbers
        assert point["cache_bytes"] == point["batch"] * (point["context"] + 4) * 2 * 2 * 2 * 8 * 4
        assert point["joules_per_token"] is None
        read = point["bandwidth_share"] * point["inter_token_latency_s"] * 1e9
        assert read == pytest.approx(point["weights_bytes"] + point["batch"] * (point["context"] + 2) * 256)


def test_a_long_enough_window_has_its_energy(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SHORTEST_ENERGY_WINDOW", 0.0005)
    found = measured(decoder, serving_contexts=[])
    assert found["energy_source"] == "measured"
    for point in found["batches"]:
        assert point["joules_per_token"] == pytest.approx(12 / (point["calls"] * 3 * point["batch"]))


def test_a_window_whose_counter_failed_has_no_energy(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SHORTEST_ENERGY_WINDOW", 0.0005)
    monkeypatch.setattr(Meter, "fault", "the counter went backwards")
    found = measured(decoder, serving_contexts=[])
    assert [point["joules_per_token"] for point in found["batches"]] == [None, None]
    assert all(point["tokens_per_second"] > 0 for point in found["batches"])


def test_a_point_beyond_the_model_says_so_and_the_others_are_measured(decoder: Decoder) -> None:
    found = measured(decoder, serving_contexts=[62, 61, 60])
    reasons = [point.get("reason") for point in found["contexts"]]
    assert reasons == [
        "62 tokens and 3 more are longer than the model's context of 64", None, None,
    ]  # fmt: skip


def test_a_point_that_does_not_fit_the_memory_says_so(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = curves.GreedyEngine

    def engine(model: Decoder, batch: int, *shape: int) -> Any:
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 TiB")
        return real(model, batch, *shape)

    monkeypatch.setattr(curves, "GreedyEngine", engine)
    found = measured(decoder)
    assert found["batches"][1] == {
        "batch": 4, "context": 8, "reason": "out of memory: CUDA out of memory. Tried to allocate 7 TiB",
    }  # fmt: skip
    assert "tokens_per_second" in found["batches"][0]
