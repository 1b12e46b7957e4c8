"""Records travel between clones by DVC's own run cache, and nothing else does."""

import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientllm import transfer
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.transfer import Transfer, export_records, import_records

CACHE = Path(".dvc") / "cache"
RECORD = b'{"status": "ok"}' + b" " * 300_000  # longer than what is unpacked at a time
HARDWARE = b'{"gpus": ["H100"]}'


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def cached(root: Path, content: bytes) -> Path:
    return root / CACHE / "files" / "md5" / md5(content)[:2] / md5(content)[2:]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def put(root: Path, content: bytes) -> str:
    path = cached(root, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5(content)


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
def clone(tmp_path: Path, make_dvc_root: Callable[[Path], Path]) -> Path:
    root = make_dvc_root(tmp_path / "clone")
    measured = "python -m stages.measure --axis tune --cell "
    run(root, measured + "lora-small", "artifacts/measure/tune/lora-small.json", RECORD)
    run(root, measured + "dora-small", "artifacts/measure/tune/dora-small.json", RECORD + b" ", hardware=b"another")
    run(root, "python -m stages.tune --method lora --size small", "artifacts/tune/lora-small", b"weights")
    return root


@pytest.fixture
def other(tmp_path: Path, make_dvc_root: Callable[[Path], Path]) -> Path:
    return make_dvc_root(tmp_path / "other")


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


def test_records_and_what_they_depended_on(clone: Path, other: Path, tmp_path: Path) -> None:
    assert export_records(tmp_path / "records.tgz", clone) == 2
    (other / "hardware.json").write_bytes(HARDWARE)
    assert import_records(tmp_path / "records.tgz", other) == Transfer(records=2, of_this_machine=1)
    found = {path.relative_to(other / CACHE).as_posix() for path in files(other / CACHE)}
    assert found == set(content_of(tmp_path / "records.tgz"))
    assert len(found) == 4
    assert not any(b"weights" in (other / CACHE / name).read_bytes() for name in found)
    assert import_records(tmp_path / "records.tgz", other).records == 2, "importing twice is harmless"


def test_an_evicted_record_stays_behind(clone: Path, tmp_path: Path) -> None:
    cached(clone, RECORD).unlink()
    assert export_records(tmp_path / "records.tgz", clone) == 1


def test_nothing_to_export(other: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no measured record"):
        export_records(tmp_path / "records.tgz", other)


def test_the_cache_may_lie_anywhere(clone: Path, other: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(clone / CACHE, elsewhere)
    (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {elsewhere}\n")
    assert export_records(tmp_path / "records.tgz", clone) == 2
    (other / ".dvc" / "config.local").write_text("[cache]\n    dir = ../../new\n")
    assert import_records(tmp_path / "records.tgz", other).records == 2
    assert len(files(tmp_path / "new")) == 4
    assert not (other / CACHE).exists()


def test_only_the_root_of_a_repository_has_a_cache(clone: Path, tmp_path: Path) -> None:
    export_records(tmp_path / "records.tgz", clone)
    for folder in (tmp_path, clone / "folder"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(ArtifactError, match=f"{folder} is no root of a DVC repository"):
            import_records(tmp_path / "records.tgz", folder)
        with pytest.raises(ArtifactError, match="is no root of a DVC repository"):
            export_records(tmp_path / "more.tgz", folder)
        assert not (folder / CACHE).exists()


def test_a_repository_that_dvc_refuses(clone: Path, tmp_path: Path) -> None:
    (clone / ".dvc" / "config").write_text("[nonsense]\n    a = b\n")
    with pytest.raises(ArtifactError, match=r"DVC cannot use the repository in .*nonsense"):
        export_records(tmp_path / "records.tgz", clone)


def test_an_earlier_archive_is_replaced(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tgz").symlink_to("records.tgz")
    export_records(tmp_path / "link.tgz", clone)
    cached(clone, RECORD).unlink()
    assert export_records(tmp_path / "link.tgz", clone) == 1
    assert len(content_of(tmp_path / "records.tgz")) == 2
    assert (tmp_path / "link.tgz").is_symlink()


@pytest.mark.parametrize(
    "prepare",
    [
        lambda path: path.write_text("seed: 0\n"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/full"),
        lambda path: archive(path, {}),
        lambda path: archive(path, {"notes.txt": b"mine"}),
    ],
)
def test_nothing_but_an_archive_is_replaced(clone: Path, tmp_path: Path, prepare) -> None:
    path = tmp_path / "there"
    prepare(path)
    before = path.lstat().st_ino, path.lstat().st_mtime_ns
    with pytest.raises(ParameterError, match="there exists and is no archive of records"):
        export_records(path, clone)
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == before


def test_a_damaged_record_is_not_exported(clone: Path, tmp_path: Path) -> None:
    cached(clone, RECORD).write_bytes(b"other")
    with pytest.raises(ArtifactError, match=f"{md5(RECORD)[2:]} is damaged: run `efficientllm verify`"):
        export_records(tmp_path / "records.tgz", clone)
    assert not (tmp_path / "records.tgz").exists()


MEASURED = b"cmd: python -m stages.measure --axis tune --cell lora-small\n"
DEPS = b"deps: [{path: hardware.json}]\n"
OUTS = b"outs: [{path: artifacts/measure/tune/lora-small.json, md5: " + md5(RECORD).encode() + b"}]\n"
BROKEN = [
    (b"", "lacks one of cmd, deps, outs"),
    (MEASURED + DEPS, "lacks one of cmd, deps, outs"),
    (MEASURED + b"deps: null\n" + OUTS, "'deps': input should be a valid list"),
    (MEASURED + b"deps: text\n" + OUTS, "'deps': input should be a valid list"),
    (MEASURED + b"deps: [{md5: abc}]\n" + OUTS, r"'deps\.0\.path': field required"),
    (MEASURED + DEPS + b"outs: []\n", "'outs': list should have at least 1 item"),
    (MEASURED + DEPS + OUTS.replace(b"path: artifacts", b"other: artifacts"), r"'outs\.0\.path': field required"),
    (
        MEASURED + DEPS + b"outs: [{path: 5, md5: " + b"0" * 32 + b"}]\n",
        r"'outs\.0\.path': input should be a valid string",
    ),
    (MEASURED + DEPS + b"outs: [{path: a}]\n", r"'outs\.0\.md5': field required"),
    (MEASURED + DEPS + b"outs: [{path: a, md5: ../../../evil}]\n", r"'outs\.0\.md5': string should match"),
    (MEASURED + DEPS + OUTS + b"a: [", "while parsing|expected the node content"),
    (MEASURED + DEPS + OUTS + b"a: !!bool text", "text"),
    (MEASURED + DEPS + OUTS + b"a: \xff", "can't decode"),
    (MEASURED + DEPS + OUTS + b"a: " + b"[" * 1000, "recursion"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_run_file_is_named(clone: Path, other: Path, tmp_path: Path, content: bytes, message: str) -> None:
    export_records(tmp_path / "records.tgz", clone)
    members = content_of(tmp_path / "records.tgz")
    name = next(name for name in members if name.startswith("runs/") and b"lora" in members[name])
    archive(tmp_path / "changed.tgz", members | {name: content})
    with pytest.raises(
        ArtifactError, match=rf"changed\.tgz: {name} is damaged \(.*({message}).*nothing is imported"
    ) as error:
        import_records(tmp_path / "changed.tgz", other)
    assert "\n" not in str(error.value)
    assert not (other / CACHE).exists()
    (clone / CACHE / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged \(.*({message}).*: delete it") as error:
        export_records(tmp_path / "records.tgz", clone)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members | {"../../evil": b"x"}, "'../../evil', which is no record"),
        (lambda members: members | {"/etc/passwd": b"x"}, "which is no record"),
        (lambda members: members | {"files/md5/ab/" + "c" * 30: b"x"}, "is damaged"),
        (
            lambda members: members | {f"files/md5/{md5(b'{}')[:2]}/{md5(b'{}')[2:]}": b"{}"},
            "holds files that are no records",
        ),
        (
            lambda members: members | {f"files/md5/{md5(b'#!/bin/sh')[:2]}/{md5(b'#!/bin/sh')[2:]}": b"#!/bin/sh"},
            "which is no record",
        ),
        (
            lambda members: {
                n: c.replace(b"  hash: md5\n  md5: ", b"  isexec: true\n  md5: ") for n, c in members.items()
            },
            r"'outs\.0\.isexec': extra inputs are not permitted",
        ),
        (
            lambda members: {
                n: c + b"  files: [{relpath: ../../evil, md5: " + b"0" * 32 + b"}]\n" if n.startswith("runs/") else c
                for n, c in members.items()
            },
            r"'outs\.0\.files': extra inputs are not permitted",
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
def test_hostile_and_damaged_archives(clone: Path, other: Path, tmp_path: Path, change, message: str) -> None:
    export_records(tmp_path / "records.tgz", clone)
    archive(tmp_path / "changed.tgz", change(content_of(tmp_path / "records.tgz")))
    with pytest.raises(ArtifactError, match=message):
        import_records(tmp_path / "changed.tgz", other)
    assert not (other / CACHE).exists(), "nothing is imported"


def test_an_archive_that_unpacks_to_too_much(
    clone: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_records(tmp_path / "records.tgz", clone)
    unpacked = len(gzip.decompress((tmp_path / "records.tgz").read_bytes()))
    monkeypatch.setattr(transfer, "_LARGEST_WHOLE", unpacked - 1)
    with pytest.raises(ArtifactError, match=r"unpacks to more than \d+ MiB: nothing is imported"):
        import_records(tmp_path / "records.tgz", other)
    monkeypatch.setattr(transfer, "_LARGEST_WHOLE", unpacked)
    monkeypatch.setattr(transfer, "_LARGEST", len(RECORD) - 1)
    with pytest.raises(ArtifactError, match=r"bytes: nothing is imported"):
        import_records(tmp_path / "records.tgz", other)
    assert not (other / CACHE).exists()


def test_names_that_multiply_are_not_written_out() -> None:
    """Ten lines of YAML that as text would be ten thousand million words."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    content = "\n".join([*lines, "cmd: *a10", "deps: []", "outs: []"]).encode()
    assert transfer._stage(content, "here", "remedy") is None


def invalid_within_a_record(tar: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)  # with gzip's header
    return packer.compress(tar[:200_000]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda tar: gzip.compress(tar)[:-9],
        invalid_within_a_record,
        # of a run file, which no name tells the hash of
        lambda tar: gzip.compress(tar, 0).replace(b"hardware.json", b"hardwire.json"),
    ],
)
def test_what_is_cut_or_flipped_on_the_way_is_noticed(clone: Path, other: Path, tmp_path: Path, damage) -> None:
    export_records(tmp_path / "records.tgz", clone)
    (tmp_path / "damaged.tgz").write_bytes(damage(gzip.decompress((tmp_path / "records.tgz").read_bytes())))
    with pytest.raises(ArtifactError, match=r"damaged\.tgz is no archive of records, or a damaged one"):
        import_records(tmp_path / "damaged.tgz", other)
    assert not (other / CACHE).exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.tgz", "none.tgz does not exist"),
        (".", "is no regular file"),
        ("/dev/null", "/dev/null is no regular file"),
    ],
)
def test_no_file(other: Path, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        import_records(tmp_path / path, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "is no archive of records, or a damaged one"),
        (b"", "is no archive of records, or a damaged one"),
        (gzip.compress(b""), "is no archive of records, or a damaged one"),
        (gzip.compress(bytes(10240)), "holds no record"),
    ],
    ids=["text", "empty", "empty-gzip", "empty-tar"],  # gzip writes the time
)
def test_no_archive(other: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file.tgz").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        import_records(tmp_path / "file.tgz", other)
