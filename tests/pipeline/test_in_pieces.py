"""A table that was measured elsewhere goes on where none of its weights are: docs/paper-scale.md, "In pieces"."""

import pytest
from project import Project

from efficientllm import pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def piece(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with the lock file of a finished run, its records and curves, and none of its weights."""
    tmp_path = tmp_path_factory.mktemp("pieces")
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
    return piece


def test_records_and_curves_are_enough_to_go_on(finished: Project, piece: Project) -> None:
    printed = piece.run("dvc", "repro", "--allow-missing").stdout
    assert [line for line in printed.splitlines() if line.startswith("> ")] == ["> python -m stages.probe"]
    piece.run("dvc", "repro", "--single-item", "normalize", "report")
    for name in ("results/results.csv", "results/ranking.csv", "reports/index.html"):
        assert (piece.root / name).read_bytes() == (finished.root / name).read_bytes(), name
    assert not list((piece.root / "artifacts").rglob("model.safetensors"))


def test_workers_add_another_piece(finished: Project, piece: Project) -> None:
    for stage in ("pretrain@mqa", "measure_pretrain@mqa", "normalize", "report"):
        lock = piece.root / pipeline.lock(stage)
        known = pipeline.read_lock(lock)
        del known[stage]
        pipeline.write_lock(lock, known)
    for made in ("artifacts/measure/pretrain/mqa.json", "artifacts/telemetry/pretrain/mqa/curve.csv"):
        (piece.root / made).unlink()
    piece.commit()
    refused = piece.run("efficientllm", "repro", "--workers", "1", "measure_pretrain@mqb", check=False).stdout
    assert refused.startswith("error: unknown stage 'measure_pretrain@mqb'; did you mean 'measure_pretrain@mqa'?")
    printed = piece.run("efficientllm", "repro", "--workers", "1", "measure_pretrain@mqa").stdout
    assert [line for line in printed.splitlines() if line.startswith("worker 1")][:2] == [
        "worker 1: pretrain@mqa", "worker 1: measure_pretrain@mqa",
    ]  # fmt: skip
    assert Project.stages_run(printed) == ["probe", "probe"], "what the piece has is not run again"
    printed = piece.run("dvc", "repro", "--allow-missing").stdout
    assert Project.stages_run(printed) == ["probe", "normalize", "report"]
    rows = [len((project.root / "results/results.csv").read_text().splitlines()) for project in (piece, finished)]
    assert rows[0] == rows[1]
