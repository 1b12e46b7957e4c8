"""What a published folder says about itself is checked before it is listed."""

import json
from pathlib import Path
from typing import Any

import pytest

from efficientllm.errors import ArtifactError
from efficientllm.files import CHECKSUMS_FILE, read_json, write_json
from efficientllm.publishing.publish import publish
from efficientllm.publishing.published_set import SET_FILE, write_index
from efficientllm.publishing.revisions import Revision, read_revisions


@pytest.fixture
def folder(run: Path) -> Path:
    return run / publish("first").folder


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        write_index(folder.parent)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()
    return message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cells", -5), ("missing", -1), ("cells", "many"), ("revision", "main"), ("revision", "A" * 40), ("name", "../../etc"),
        ("device", "\ud800"), ("torch", 2), ("further", 1),
    ],
)  # fmt: skip
def test_a_faulty_field_is_named(folder: Path, field: str, value: Any) -> None:
    (folder / SET_FILE).write_text(json.dumps(read_json(folder / SET_FILE) | {field: value}))
    message = refused(folder)
    assert f"{SET_FILE} does not describe a published set ('{field}': " in message
    assert message.endswith(f"publish first again, or delete {folder}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "cannot be read"), ("[" * 100_000, "is nested too deeply"), ("[]", "does not describe a published set (it is no mapping)")],
)  # fmt: skip
def test_a_description_that_is_none(folder: Path, text: str, fault: str) -> None:
    (folder / SET_FILE).write_text(text)
    message = refused(folder)
    assert f"{SET_FILE} {fault}" in message
    assert message.endswith(f"publish first again, or delete {folder}")


def test_a_folder_that_is_no_set_or_was_renamed(folder: Path) -> None:
    other = folder.rename(folder.with_name("renamed"))
    assert "describes 'first': publish again" in refused(other)
    (other / SET_FILE).unlink()
    assert f"renamed is no published set, since it has no {SET_FILE}: move it elsewhere" in refused(other)


@pytest.mark.parametrize("name", ["results.csv", "records.json", SET_FILE])
def test_a_file_that_was_changed_by_hand(folder: Path, name: str) -> None:
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert f"{name} is damaged: publish first again" in refused(folder)
    publish("first")
    assert write_index(folder.parent) == 1


def test_without_a_set_there_is_no_index(tmp_path: Path) -> None:
    assert "published holds no published set to list" in refused(tmp_path / "published" / "none")
    assert not list(tmp_path.iterdir())


def test_records_without_provenance_or_with_an_odd_one(tmp_path: Path) -> None:
    known = {"git_revision": "ab" * 20, "git_dirty": False}
    odd = {"git_revision": "x\nrm -rf ~", "git_dirty": None}
    records = [{"seed": 1}, {"provenance": odd}, {"provenance": {}}, *[{"provenance": known}] * 3]
    write_json(tmp_path / "records.json", records)
    assert read_revisions(tmp_path) == [Revision("ab" * 20, False, 3), Revision(None, False, 2)]


@pytest.mark.parametrize("content", [{}, [1], [{"provenance": 1}]])
def test_records_that_are_none(folder: Path, content: Any) -> None:
    (folder / CHECKSUMS_FILE).unlink()
    write_json(folder / "records.json", content)
    assert "records.json is no list of records: publish first again" in refused(folder)
