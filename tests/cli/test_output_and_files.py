"""What the system refuses is one line, and what the terminal cannot show is escaped."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from efficientllm.cli import main

ROOT = Path(__file__).parents[2]
LONG = "x" * 300


def rank(table: Path, *arguments: str, output: int | IO[str] = subprocess.PIPE, encoding: str = "utf-8"):
    return subprocess.run(
        [sys.executable, "-m", "efficientllm.cli", "rank", str(table), *arguments],
        stdout=output, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("group,technique,metric,value\ng,\u03b1\u00e9,loss,1\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", LONG, LONG], f"error: {LONG}: File name too long\n"),
        (["import-records", LONG], f"error: {LONG}: File name too long\n"),
        (["export-records", LONG], f"error: {LONG}: File name too long\n"),
        (["rank", "\udcff"], "error: '\\udcff' is no valid text in this locale: rename the file, or use UTF-8\n"),
    ],
)
def test_names_that_no_file_can_have(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_dvc_root: Callable[[Path], Path],
    arguments: list[str],
    message: str,
) -> None:
    make_dvc_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", message)


def test_a_file_that_may_not_be_read(
    capsys: pytest.CaptureFixture[str], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root, who runs some tests, may read everything
    assert main(["compare", str(table), str(table)]) == 1
    assert capsys.readouterr() == ("", f"error: {table}: Permission denied\n")


def test_a_full_disk_behind_the_output(table: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = rank(table, output=full)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write to standard output: No space left on device\n")


def test_names_that_the_terminal_cannot_show(table: Path) -> None:
    done = rank(table, "--format", "csv", encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b",\\u03b1\xe9," in done.stdout
