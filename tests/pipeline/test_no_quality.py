"""A model whose loss is no number is measured like any other, and has a reason in place of its quality."""

import pytest
import torch
from project import Project

from efficientllm import config
from efficientllm.bases.base import base_folder
from efficientllm.measurement import subjects
from efficientllm.measurement.cell import _quality
from efficientllm.measurement.compression import compression_values
from efficientllm.measurement.findings import Findings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("axis", "cell"), [("tune", "lora-small"), ("quantize", "float16-small"), ("pretrain", "mqa")])
@pytest.mark.parametrize(
    ("factor", "found"), [(float("nan"), "not finite in places"), (1e5, "nat per token in places")]
)
def test_quality_is_missing_with_its_reason(finished: Project, monkeypatch, axis, cell, factor, found) -> None:
    monkeypatch.chdir(finished.root)
    configuration, cpu = config.load(), torch.device("cpu")
    decoder = subjects.load(configuration, axis, cell, cpu)
    if decoder.lm_head is not None and decoder.lm_head.weight.dtype != torch.float32:
        decoder.float()  # in which the losses are large, and not beyond the type
    with torch.no_grad():
        (decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head).weight.mul_(factor)
    base = None if axis == "pretrain" else base_folder("small")
    findings = Findings(subjects.facts(configuration, axis, cell, decoder, None), {})
    outcomes = _quality(configuration, axis, base, decoder, cpu, findings)
    compression_values(configuration, axis, cell, decoder, outcomes, findings)
    assert outcomes is None
    assert "perplexity" not in findings.values
    expected = (
        {"perplexity"}
        if axis == "pretrain"
        else {"perplexity", "task_loss", "perplexity_change", "task_accuracy_change"}
    )
    for key in expected:
        assert found in findings.missing[key], key
