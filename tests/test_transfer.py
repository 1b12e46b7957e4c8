"""Records travel between clones by DVC's own run cache, and nothing else does."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.transfer import CACHE, Transfer, export_records, import_records

RECORD = b'{"status": "ok"}'
HARDWARE = b'{"gpus": ["H100"]}'


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put(root: Path, content: bytes) -> str:
    name = md5(content)
    path = root / CACHE / "files" / "md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def run(root: Path, command: str, output: str, content: bytes, hardware: bytes = HARDWARE) -> Path:
    text = (
        f"cmd: {command}\ndeps:\n- path: hardware.json\n  hash: md5\n  md5: {md5(hardware)}\n"
        f"outs:\n- path: {output}\n  hash: md5\n  md5: {put(root, content)}\n"
    )
    stage, value = (hashlib.sha256(part.encode()).hexdigest() for part in (command, text))
    path = root / CACHE / "runs" / stage[:2] / stage / value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    root = tmp_path / "clone"
    measured = "python -m stages.measure --axis tune --cell "
    run(root, measured + "lora-small", "artifacts/measure/tune/lora-small.json", RECORD)
    run(root, measured + "dora-small", "artifacts/measure/tune/dora-small.json", RECORD + b" ", hardware=b"another")
    run(root, "python -m stages.tune --method lora --size small", "artifacts/tune/lora-small", b"weights")
    return root


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def content_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {entry.name: file.extractfile(entry).read() for entry in file}  # type: ignore[union-attr]


def test_records_and_what_they_depended_on(clone: Path, tmp_path: Path) -> None:
    assert export_records(tmp_path / "records.tgz", clone) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "hardware.json").write_bytes(HARDWARE)
    assert import_records(tmp_path / "records.tgz", other) == Transfer(records=2, of_this_machine=1)
    found = {path.relative_to(other / CACHE).as_posix() for path in (other / CACHE).rglob("*") if path.is_file()}
    assert found == set(content_of(tmp_path / "records.tgz"))
    assert len(found) == 4
    assert not any(b"weights" in (other / CACHE / name).read_bytes() for name in found)
    assert import_records(tmp_path / "records.tgz", other).records == 2, "importing twice is harmless"


def test_an_evicted_record_stays_behind(clone: Path, tmp_path: Path) -> None:
    name = md5(RECORD)
    (clone / CACHE / "files" / "md5" / name[:2] / name[2:]).unlink()
    assert export_records(tmp_path / "records.tgz", clone) == 1


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no measured record"):
        export_records(tmp_path / "records.tgz", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members | {"../../evil": b"x"}, "'../../evil', which is no record"),
        (lambda members: members | {"/etc/passwd": b"x"}, "which is no record"),
        (lambda members: members | {"files/md5/ab/" + "c" * 30: b"x"}, "is damaged"),
        (
            lambda members: members | {f"files/md5/{md5(b'y')[:2]}/{md5(b'y')[2:]}": b"y"},
            "holds files that are no records",
        ),
        (lambda members: {n: c for n, c in members.items() if n.startswith("runs/")}, "is incomplete"),
        (
            lambda members: {n: c.replace(b"stages.measure", b"stages.tune") for n, c in members.items()},
            "something else than a measurement",
        ),
        (
            lambda members: {
                n: c.replace(b"artifacts/measure/tune", b"artifacts/measure/../..") for n, c in members.items()
            },
            "something else than a measurement",
        ),
        (lambda members: {n: c.replace(b"cmd:", b"dmc:") for n, c in members.items()}, "is damaged"),
    ],
)
def test_hostile_and_damaged_archives(clone: Path, tmp_path: Path, change, message: str) -> None:
    export_records(tmp_path / "records.tgz", clone)
    archive(tmp_path / "changed.tgz", change(content_of(tmp_path / "records.tgz")))
    other = tmp_path / "other"
    with pytest.raises(ArtifactError, match=message):
        import_records(tmp_path / "changed.tgz", other)
    assert not other.exists(), "nothing is imported"


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="does not exist"):
        import_records(tmp_path / "none.tgz", tmp_path)
    (tmp_path / "text.tgz").write_text("text")
    with pytest.raises(ArtifactError, match="no archive of records"):
        import_records(tmp_path / "text.tgz", tmp_path)
