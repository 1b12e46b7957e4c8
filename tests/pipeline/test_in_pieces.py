"""A table that was measured elsewhere goes on where none of its weights are: docs/paper-scale.md, "In pieces"."""

from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.slow


def test_records_and_curves_are_enough_to_go_on(finished: Project, tmp_path: Path) -> None:
    remote = ("dvc", "remote", "add", "--local", "pieces", str(tmp_path / "remote"))
    finished.run(*remote)
    try:
        finished.run("sh", "-c", "dvc push -r pieces artifacts/measure/*/*.json artifacts/telemetry/*/*")
    finally:
        finished.run("dvc", "remote", "remove", "--local", "pieces")
    finished.run("git", "clone", "-q", str(finished.root), str(tmp_path / "piece"))
    piece = Project(tmp_path / "piece")
    piece.run(*remote)
    piece.run("dvc", "repro", "prepare")
    piece.run("dvc", "pull", "-r", "pieces", "--allow-missing")
    printed = piece.run("dvc", "repro", "--allow-missing").stdout
    assert [line for line in printed.splitlines() if line.startswith("> ")] == ["> python -m stages.probe"]
    piece.run("dvc", "repro", "--single-item", "normalize", "report")
    for name in ("results/results.csv", "results/ranking.csv", "reports/index.html"):
        assert (piece.root / name).read_bytes() == (finished.root / name).read_bytes(), name
    assert not list((piece.root / "artifacts").rglob("model.safetensors"))
