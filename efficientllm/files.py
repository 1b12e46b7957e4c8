"""Files that are either whole or absent: atomic writes, strict JSON, content hashes."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientllm.errors import ArtifactError

_PARTIAL = ".partial"
"""How the name of what is being written ends; git and DVC ignore such names."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file through a temporary sibling, so that a killed process leaves the old file or the new one.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON (sorted keys, no NaN) atomically.

    Raises:
        ValueError: The content holds NaN or infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file that an earlier stage wrote.

    Raises:
        ArtifactError: The file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing: run `dvc repro`, or `dvc checkout` where it is in the cache"
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete it and run `dvc repro` again") from error


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `path` when the block succeeds, and vanishes when it fails.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            _flush(entry)
        _flush(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.chmod(0o755)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    except Exception as error:
        # libraries in Rust (safetensors) tell a full disk by an exception of their own
        if not re.search(r"\(os error \d+\)", str(error)):
            raise
        raise ArtifactError(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of its writing of the same path."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[^.]+{re.escape(_PARTIAL)}")
    for entry in path.parent.iterdir():
        if not leftover.fullmatch(entry.name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Brings a file, or a folder's list of names, to the disk, so that a power cut cannot leave a whole name of a cut file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's content as a hexadecimal string."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """Returns the SHA-256 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def size_on_disk(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
