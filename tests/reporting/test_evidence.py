"""What the report refuses to be made from, and what may be absent."""

import re
import shutil
from pathlib import Path

import factories
import pytest

from efficientllm import paths
from efficientllm.errors import ArtifactError
from efficientllm.reporting.evidence import collect
from efficientllm.reporting.page import render
from efficientllm.training.telemetry import write_untrained


def test_stale_tables_are_refused(tmp_path) -> None:
    configuration = factories.make_run(tmp_path)
    path = tmp_path / paths.RESULTS / "ranking.csv"
    path.write_text(path.read_text().replace(",1,", ",2,", 1))
    with pytest.raises(ArtifactError, match=r"ranking\.csv does not match the records"):
        collect(configuration, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step,tokens,loss\n1,2,3\n", "has no column validation_loss, seconds, joules"),
        ("step,tokens,loss,validation_loss,learning_rate,seconds,joules\n1,2,x,,,,\n", "line 2: loss is 'x'"),
        ("step,tokens,loss,validation_loss,learning_rate,seconds,joules\n1,,3,,,,\n", "a line has no token count"),
    ],
)
def test_damaged_curves_are_refused(tmp_path: Path, content, message) -> None:
    configuration = factories.make_run(tmp_path)
    (tmp_path / paths.telemetry("pretrain", "mqa") / "curve.csv").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        collect(configuration, tmp_path)


def test_curves_may_be_absent_with_a_reason(tmp_path: Path) -> None:
    configuration = factories.make_run(tmp_path)
    shutil.rmtree(tmp_path / paths.telemetry("pretrain", "mqa"))
    write_untrained(tmp_path / paths.telemetry("pretrain", "mqa"))
    folder = tmp_path / paths.telemetry("tune", "lora-small")
    (folder / "failure.json").write_text('{"reason": "the loss diverged"}')
    found = collect(configuration, tmp_path)
    assert found.without_curve == {
        ("pretrain", "mqa"): "random weights: the profile trains nothing",
        ("tune", "lora-small"): "failed: the loss diverged",
    }
    assert "LoRA (small model): failed: the loss diverged" in re.sub(r"\s+", " ", render(found))


@pytest.mark.parametrize("content", ["[]", "{}", '{"hardware": null}'])
def test_telemetry_that_does_not_name_its_energy_is_refused(tmp_path: Path, content) -> None:
    configuration = factories.make_run(tmp_path)
    (tmp_path / paths.telemetry("pretrain", "mqa") / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match="does not say where its energy comes from"):
        collect(configuration, tmp_path)
