"""The record contract: complete, typed, finite."""

import json
from pathlib import Path
from typing import Any

import pytest

from efficientllm.errors import ArtifactError
from efficientllm.metrics import measured_metrics
from efficientllm.records import Record, read_record, write_record


def a_record(**changes: Any) -> dict[str, Any]:
    metrics = {
        metric.key: {
            "value": 1.5, "unit": metric.unit, "direction": metric.direction, "source": "measured",
            "method": "test", "n": 2, "repeats": [1.0, 2.0], "ci_low": 1.0, "ci_high": 2.0,
        }
        for metric in measured_metrics("pretrain")
    }  # fmt: skip
    content = {
        "axis": "pretrain", "cell": "mqa", "technique": "mqa", "size": "medium", "status": "ok",
        "model": {
            "parameters_total": 1, "parameters_active": 1, "parameters_trainable": 1, "bytes_on_disk": 4,
            "bytes_in_memory": 4,
        },
        "metrics": metrics,
        "provenance": {"seed": 0, "profile": "cpu"},
    }  # fmt: skip
    return content | changes


def test_round_trip(tmp_path: Path) -> None:
    record = Record.model_validate(a_record())
    write_record(tmp_path / "mqa.json", record)
    assert read_record(tmp_path / "mqa.json") == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["metrics"].pop("energy_per_token"),
            "neither measured nor explained: energy_per_token",
        ),
        (lambda content: content["metrics"]["perplexity"].update(value=float("nan")), "finite number"),
        (lambda content: content["metrics"]["perplexity"].update(unit="s"), "perplexity is in 's'"),
        (lambda content: content["metrics"]["perplexity"].update(direction="higher"), "expected '', lower"),
        (lambda content: content["metrics"]["perplexity"].update(ci_low=None), "ci_low and ci_high come together"),
        (lambda content: content["metrics"]["perplexity"].update(ci_low=3.0), "is above ci_high"),
        (lambda content: content["metrics"]["perplexity"].update(value=0.9), "0.9 is outside its interval, ci_low 1.0"),
        (lambda content: content["metrics"]["perplexity"].update(value=2.1), "2.1 is outside its interval, ci_low 1.0"),
        (lambda content: content["metrics"]["perplexity"].update(source="guessed"), "measured"),
        (lambda content: content.update(missing={"perplexity": "no"}), "both measured and missing: perplexity"),
        (lambda content: content.update(status="failed"), "a failed record has a reason"),
        (lambda content: content.update(reason="why"), "a failed record has a reason"),
        (lambda content: content.update(model=None), "describes its model"),
        (lambda content: content.update(extra=1), "extra inputs"),
    ],
)
def test_contract_is_enforced_on_read(tmp_path: Path, change: Any, message: str) -> None:
    content = a_record()
    change(content)
    path = tmp_path / "mqa.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        read_record(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_failed_record_needs_no_metrics(tmp_path: Path) -> None:
    content = a_record(status="failed", reason="out of memory: 90 GiB wanted", model=None, metrics={})
    write_record(tmp_path / "x.json", Record.model_validate(content))
    assert read_record(tmp_path / "x.json").reason == "out of memory: 90 GiB wanted"


def test_missing_with_reason_is_complete() -> None:
    content = a_record()
    content["metrics"].pop("model_flops_utilization")
    content["missing"] = {"model_flops_utilization": "no dense peak is known for this processor"}
    Record.model_validate(content)
