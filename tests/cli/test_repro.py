"""What `repro` refuses before it makes any worker."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientllm.cli import main
from efficientllm.errors import ParameterError
from efficientllm.workers import repro as workers

ROOT = Path(__file__).parents[2]
NEEDED = {
    "probe": [],
    "prepare": ["probe"],
    "pretrain@mqa": ["prepare"],
    "pretrain@mla": ["prepare"],
    "report": ["prepare"],
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown stage 'nonsense'; known: prepare, pretrain, probe, report"),
        ([], f"--workers is {10**23}: give a number from 1 to that of the units that these stages are run in, 2"),
        (["pretrain@mla"], f"--workers is {10**23}: give a number from 1 to that of the units that these stages are run in, 1"),
        (["probe"], f"--workers is {10**23}: give a number from 1 to that of the units that these stages are run in, 1"),
    ],
)  # fmt: skip
def test_targets_and_workers_are_checked_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(workers, "check_committed", lambda root: None)
    monkeypatch.setattr(workers, "_pipeline", lambda root: (NEEDED, root))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["repro", *arguments, "--workers", str(10**23)]) == 1
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_workers_need_a_commit_of_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParameterError, match="this folder has no commit"):
        workers.check_committed(tmp_path)


def test_a_pipeline_that_dvc_cannot_read(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make_dvc_root: Callable[[Path], Path],
) -> None:
    make_dvc_root(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: [")
    for name in ("params.yaml", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "check_committed", lambda root: None)
    assert main(["repro", "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: DVC cannot read the pipeline (")
