"""The page that tells how to add a technique is right: its own example is added, and only its cells run."""

import re

import pytest
from project import ROOT, Project

from efficientllm import paths
from efficientllm.records import read_record

pytestmark = pytest.mark.slow


def example(marker: str) -> str:
    page = (ROOT / "docs" / "adding-a-technique.md").read_text()
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found, marker
    return found.group(1)


def test_the_example_of_the_page(finished: Project) -> None:
    path = finished.root / "efficientllm/components/mixers/running_mean.py"
    try:
        path.write_text(example("file: efficientllm/components/mixers/running_mean.py"))
        anchor = '    _pretrain(\n        _ATTENTION, "mqa",'
        finished.replace("efficientllm/registry.py", anchor, example("row") + anchor)
        finished.replace("params.yaml", "architectures:\n", "architectures:\n" + example("params"))
        finished.replace("profiles/smoke.yaml", "\narchitectures:\n", "\narchitectures:\n" + example("profile"))
        finished.run("efficientllm", "check")
        output = finished.run("dvc", "repro").stdout
        ran = Project.stages_run(output)
        trained_or_measured = [name for name in ran if name.startswith(("pretrain", "tune", "quantize", "measure"))]
        assert trained_or_measured == ["pretrain@running_mean", "measure_pretrain@running_mean"], ran
        assert read_record(finished.root / paths.record("pretrain", "running_mean")).status == "ok"
        page = (finished.root / "reports/index.html").read_text()
        assert "Running mean" in page
        assert "the mean of all values so far" in page
    finally:
        path.unlink(missing_ok=True)
        finished.run("git", "reset", "-q", "--hard")
        finished.run("dvc", "checkout", "--force")
