"""Files that are either whole or absent: atomic writes, strict JSON, content hashes, checksums."""

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

CHECKSUMS_FILE = "checksums.json"
_CHECKSUM = "sha256"
MISSING_REMEDY = "run `dvc repro`, or `dvc checkout` where it is in the cache"
UNREADABLE_REMEDY = "delete it and run `dvc repro` again"
CHANGED_REMEDY = "run `efficientllm verify`, then `dvc repro`"
"""DVC replaces a file that changed in the workspace, and believes one that changed in its cache."""
_PARTIAL = ".partial"
"""How the name of what is being written ends; git and DVC ignore such names."""
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


def read_json(path: Path, remedy: str | None = None) -> Any:
    """Reads a JSON file that an earlier stage wrote.

    Args:
        path: The file.
        remedy: What an error says is to be done; for a file that no stage wrote.

    Raises:
        ArtifactError: The file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: {remedy or MISSING_REMEDY}") from error
    except RecursionError as error:
        raise ArtifactError(f"{path} is nested too deeply: {remedy or UNREADABLE_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {remedy or UNREADABLE_REMEDY}") from error


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with its own checksum, see `read_checked_json`."""
    write_json(path, {**content, _CHECKSUM: content_hash(content)})


def read_checked_json(path: Path) -> Any:
    """Reads what `write_checked_json` wrote, without the checksum; also a file that has none.

    Raises:
        ArtifactError: The file is missing, not valid JSON, or does not fit its checksum.
    """
    content = read_json(path)
    expected = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
    if expected is not None and content_hash(content) != expected:
        raise ArtifactError(f"{path} is damaged: {CHANGED_REMEDY}")
    return content


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `path` when the block succeeds, and vanishes when it fails.

    What was there before stays whole until then. The finished folder also holds the checksums of its files, see `check_directory`.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL))
        replaced = temporary.with_name(f"{temporary.name.removesuffix(_PARTIAL)}-replaced{_PARTIAL}")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        entries = sorted(temporary.rglob("*"))
        sums = {entry.relative_to(temporary).as_posix(): file_hash(entry) for entry in entries if entry.is_file()}
        sums.pop(CHECKSUMS_FILE, None)
        for entry in entries:
            _flush(entry)
        write_json(temporary / CHECKSUMS_FILE, sums)
        temporary.chmod(0o755)
        if path.exists():
            path.replace(replaced)  # at once, where SIGTERM in the middle of its removal would leave neither
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    except ArtifactError as error:  # of a file in the temporary folder, whose name says nothing to anyone
        raise ArtifactError(str(error).replace(str(temporary), str(path))) from error
    except Exception as error:
        # libraries in Rust (safetensors) tell a full disk by an exception of their own
        if not re.search(r"\(os error \d+\)", str(error)):
            raise
        raise ArtifactError(f"cannot write {path}: {error}") from error
    finally:
        if replaced.exists() and not path.exists():
            replaced.replace(path)
        _remove(temporary)
        _remove(replaced)


def check_directory(path: Path, remedy: str | None = None) -> None:
    """Checks a folder that `whole_directory` wrote against its checksums; any other folder passes.

    Args:
        path: The folder.
        remedy: What an error says is to be done; for a folder that DVC does not keep.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    checksums = path / CHECKSUMS_FILE
    if not checksums.exists():
        return
    sums = read_json(checksums, remedy)
    if not isinstance(sums, dict):
        raise ArtifactError(f"{checksums} is damaged: {remedy or CHANGED_REMEDY}")
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing: {remedy or MISSING_REMEDY}")
        if file_hash(file) != expected:
            raise ArtifactError(f"{file} is damaged: {remedy or CHANGED_REMEDY}")


def _remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of its writing of the same path."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[^.]+{re.escape(_PARTIAL)}")
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name):
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
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


def sources_hash(root: Path, parts: Sequence[str] = (".",)) -> str:
    """Returns a SHA-256 of all Python files below some folders of a root, names included."""
    sources = sorted({path for part in parts for path in (root / part).rglob("*.py")})
    return content_hash({str(path.relative_to(root)): file_hash(path) for path in sources})


def size_on_disk(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
