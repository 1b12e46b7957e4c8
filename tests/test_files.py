"""Files are whole or absent."""

import contextlib
import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from efficientllm.errors import ArtifactError, Terminated
from efficientllm.files import (
    CHECKSUMS_FILE,
    check_directory,
    content_hash,
    csv_text,
    read_checked_json,
    read_json,
    size_on_disk,
    whole_directory,
    write_bytes,
    write_checked_json,
    write_json,
)


def test_json_is_strict_and_sorted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"b": None, "a": 0.1, "é": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": 0.1,\n  "b": null,\n  "é": "ü"\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["a"] == 0.1, "the failed write must leave the old file"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"], "no temporary file is left"


def test_read_json_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent.json is missing: run `dvc repro`"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"cut.json cannot be read .* run `dvc repro` again"):
        read_json(tmp_path / "cut.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"deep.json is nested too deeply: delete it and run `dvc repro` again"):
        read_json(tmp_path / "deep.json")
    with pytest.raises(ArtifactError, match=r"absent.json is missing: ask$"):
        read_json(tmp_path / "absent.json", "ask")


def test_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    with whole_directory(target) as folder:
        (folder / "a").write_bytes(b"12345")
    assert size_on_disk(target / "a") == 5
    assert size_on_disk(target) == 5 + size_on_disk(target / CHECKSUMS_FILE)
    with pytest.raises(RuntimeError, match="boom"), whole_directory(target) as folder:
        (folder / "b").write_bytes(b"1")
        raise RuntimeError("boom")
    assert sorted(entry.name for entry in target.iterdir()) == ["a", CHECKSUMS_FILE]
    with whole_directory(target) as folder:
        (folder / "c").write_bytes(b"1")
    assert sorted(entry.name for entry in target.iterdir()) == ["c", CHECKSUMS_FILE]
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"], "no temporary folder is left"


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_what_is_replaced_is_whole_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """A signal may come before, between or after the renamings, or in the middle of a removal."""
    target = tmp_path / "artifact"
    for name in ("a", "b", "c"):
        target.mkdir(exist_ok=True)
        (target / name).write_text("old")
    replace, count = Path.replace, 0

    def told(self: Path, destination: Path) -> Path:
        nonlocal count
        if count == moment and self.name.startswith((".artifact", "artifact")):
            count += 1
            raise Terminated
        count += self.name.startswith((".artifact", "artifact"))
        return replace(self, destination)

    def remove(folder: Path, *, ignore_errors: bool = False) -> None:
        if not folder.name.endswith(".partial"):
            (folder / "a").unlink()
            raise Terminated

    monkeypatch.setattr(Path, "replace", told)
    monkeypatch.setattr(shutil, "rmtree", remove)
    with contextlib.suppress(Terminated), whole_directory(target):
        pass
    found = sorted(entry.name for entry in target.iterdir())
    assert found == (["a", "b", "c"] if moment < 2 else [CHECKSUMS_FILE])


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(ArtifactError, match="cannot write"), whole_directory(tmp_path / "file" / "below"):
        pass


def test_leftovers_of_a_killed_writer_vanish(tmp_path: Path) -> None:
    (tmp_path / ".x.json.a1b2c3d4.partial").write_text("{")
    (tmp_path / ".x.a1b2c3d4.partial").mkdir()
    (tmp_path / ".x.a1b2c3d4.partial" / "half").write_text("")
    write_json(tmp_path / "x.json", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".x.a1b2c3d4.partial", "x.json"]
    with whole_directory(tmp_path / "x"):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", "x.json"]


def test_checksums_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with whole_directory(folder) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "weights").write_bytes(b"12345")
    check_directory(folder)
    (folder / "below" / "weights").write_bytes(b"12344")
    with pytest.raises(ArtifactError, match=r"below/weights is damaged: run `efficientllm verify`, then `dvc repro`"):
        check_directory(folder)
    (folder / "below" / "weights").unlink()
    with pytest.raises(ArtifactError, match=r"below/weights is missing"):
        check_directory(folder)
    with pytest.raises(ArtifactError, match=r"below/weights is missing: make it anew$"):
        check_directory(folder, "make it anew")
    (folder / CHECKSUMS_FILE).write_text("[]")
    with pytest.raises(ArtifactError, match=r"checksums.json is damaged: run `efficientllm verify`"):
        check_directory(folder)
    check_directory(tmp_path)


def test_json_with_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = {"b": [0.1, 1e22, -0.0, 3], "a": {"é": None}}
    write_checked_json(path, content)
    assert read_checked_json(path) == content
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ArtifactError, match=r"x.json is damaged"):
        read_checked_json(path)
    write_json(path, content)
    assert read_checked_json(path) == content


def test_content_hash_ignores_key_order() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\n=1", "\uff1d1"])
def test_csv_cells_that_a_spreadsheet_would_run_get_an_apostrophe(text: str) -> None:
    (cell,) = list(csv.reader(io.StringIO(csv_text(["name"], [[text]]), newline="")))[1]
    assert cell == f"'{text}"
    (cell,) = list(csv.reader(io.StringIO(csv_text(["name"], [[("a", text)]]), newline="")))[1]
    assert cell == f"a;'{text}"


@pytest.mark.parametrize(("text", "read"), [("a\r=1", "a\n=1"), ("a\r\n=1", "a\n=1"), ("\r=1", "'\n=1")])
def test_a_carriage_return_begins_no_new_line(text: str, read: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text(["name"], [[text]]), newline="")))
    assert rows == [["name"], [read]]


def test_csv_cells_read_back() -> None:
    row = ["a,b", 'say "x"', "-1.5e-3", "a=b", "", None, True, 3, -0.1, np.float64(1e-7), 1e22]
    cells = list(csv.reader(io.StringIO(csv_text([str(index) for index in range(len(row))], [row]))))[1]
    assert cells == ["a,b", 'say "x"', "-1.5e-3", "a=b", "", "", "true", "3", "-0.1", "1e-07", "1e+22"]
