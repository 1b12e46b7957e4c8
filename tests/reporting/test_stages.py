"""The two thin stages: from records on disk to tables and a page."""

import json
import subprocess
import sys

import factories
import pytest

from efficientllm import paths
from efficientllm.errors import ArtifactError
from stages import normalize, report


@pytest.fixture
def run(tmp_path, monkeypatch):
    factories.make_run(tmp_path)
    for path in (tmp_path / paths.RESULTS).iterdir():
        path.unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_normalize_then_report(run, capsys) -> None:
    assert normalize.main([]) == 0
    results = {path.name: path.read_bytes() for path in paths.RESULTS.iterdir()}
    assert set(results) == {"results.csv", "ranking.csv", "metrics.json"}
    assert set(json.loads(results["metrics.json"])) == {"pretrain", "tune", "quantize"}
    assert report.main([]) == 0
    page = paths.REPORT.read_bytes()
    assert page.startswith(b"<!DOCTYPE html>")
    assert "0 failed" in capsys.readouterr().out
    assert (normalize.main([]), report.main([])) == (0, 0)
    assert {path.name: path.read_bytes() for path in paths.RESULTS.iterdir()} == results
    assert paths.REPORT.read_bytes() == page


def test_report_without_tables_says_what_to_run(run) -> None:
    with pytest.raises(ArtifactError, match="dvc repro normalize"):
        report.main([])
    assert not paths.REPORT.exists()


def test_normalize_starts_without_heavy_libraries() -> None:
    code = "import sys, stages.normalize; print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib', 'jinja2') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=factories.REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
