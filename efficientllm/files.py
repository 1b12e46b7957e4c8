"""Files that are either whole or absent: atomic writes, strict JSON, content hashes."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from efficientllm.errors import ArtifactError

# the last four are the full-width forms, which some spreadsheets read alike
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NEGATIVE = re.compile(r"-\d+(\.\d*)?([eE][-+]?\d+)?", re.ASCII)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file through a temporary sibling, so that a killed process leaves the old file or the new one.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Renders rows as CSV with a header, one decimal point, no thousands separators, and empty cells for None.

    Text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a line break, and is no negative number)
    gets a leading apostrophe. Numbers are written so that they read back to the same value; a tuple becomes one cell.

    Args:
        header: The columns' names.
        rows: Cells: text, numbers, truth values, tuples of text, or None.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return float.__repr__(value)  # of a NumPy number too
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ";".join(map(_csv_cell, value))
    # the csv module quotes a line feed, but leaves a lone carriage return bare, where readers begin a new line
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA_STARTS) and not _NEGATIVE.fullmatch(text) else text


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
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.chmod(0o755)
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
