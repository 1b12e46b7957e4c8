"""Text from the user's own files: .txt and .md are one document each, .jsonl one per line, .parquet one per row."""

import glob
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.config.schema import FilesSource
from efficientllm.data.document import Corpus, Document, checked_document
from efficientllm.errors import DataError, first_line, shown

_TEXT = (".txt", ".md")
_PARQUET_ROWS = 1024
_DVC_CACHE = Path(".dvc") / "cache"


def read_files(settings: FilesSource) -> Corpus:
    """Reads every file that the patterns match, in the order of their names.

    Args:
        settings: Patterns (`**` crosses folders), the field that holds the text in JSONL and parquet, the licence.

    Raises:
        DataError: A pattern matches nothing, or a file, line or row cannot be used; the message names it.
    """
    files = matched_files(settings.paths)
    documents = [document for path in files for document in _read(path, settings.text_field)]
    return Corpus("files", settings.licence, None, documents, {"paths": settings.paths, "files": len(files)})


def matched_files(patterns: Iterable[str]) -> list[Path]:
    """Lists the files that the patterns match, in the order of their names.

    A pattern may lead anywhere, for it is the user's own. What it matches may not: a link among somebody else's texts
    could bring any file of this machine into the corpus. Links into DVC's cache are how DVC may keep a folder.

    Raises:
        DataError: A pattern matches nothing, or a link out of its folder; the message names it.
    """
    files: set[Path] = set()
    for pattern in patterns:
        matched = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207 - absolute patterns too
        matched = {path for path in matched if path.is_file()}
        if not matched:
            raise DataError(
                f"data.files.paths: {shown(pattern)} matches no file (patterns are relative to the folder of dvc.yaml)"
                f"{paths.copied_project_hint()}"
            )
        if glob.has_magic(pattern):
            for path in sorted(matched):
                _check_link(path, fixed_part(pattern).resolve())
        files |= matched
    return sorted(files)


def fixed_part(pattern: str) -> Path:
    """What stands before a pattern's first wildcard; all of it where there is none."""
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    return Path(*fixed)


def _check_link(path: Path, folder: Path) -> None:
    target = path.resolve()
    if not any(target.is_relative_to(allowed) for allowed in (folder, _DVC_CACHE.resolve())):
        raise DataError(
            f"data.files.paths: {path} is a link to {target}, out of the pattern's folder: copy what it leads to, or "
            "name the link without a wildcard"
        )


def read_utf8(path: Path) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read or is not UTF-8; the message names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02X} is not UTF-8; convert the file, "
            f"for example with `iconv -f latin1 -t utf-8`"
        ) from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each line that is not blank.

    Raises:
        DataError: A line is not JSON, or the file holds none.
    """
    found = False
    # not splitlines(): that would break at U+2028 and other characters that JSON strings may hold as they are
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        found = True
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); one object a line"
            ) from error
        except RecursionError as error:
            raise DataError(f"{path}, line {number}: nested too deeply; one object of texts a line") from error
        yield number, value
    if not found:
        raise DataError(f"{path} is empty: remove it, or leave it out of the paths")


def _read(path: Path, field: str) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        yield checked_document(read_utf8(path), str(path))
    elif suffix == ".jsonl":
        for number, value in json_lines(path):
            where = f"{path}, line {number}"
            if not isinstance(value, dict) or field not in value:
                known = ", ".join(sorted(value)) if isinstance(value, dict) else "none: it is no object"
                raise DataError(f"{where}: no field {field!r} (data.files.text_field); its fields: {known}")
            yield _checked_value(value[field], where, field)
    elif suffix == ".parquet":
        yield from _read_parquet(path, field)
    else:
        raise DataError(f"{path}: unknown kind of file {suffix!r}; known: .txt, .md, .jsonl, .parquet")


def _read_parquet(path: Path, field: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise DataError(f"{path}: no column {field!r} (data.files.text_field); its columns: {', '.join(names)}")
            if table.metadata.num_rows == 0:
                raise DataError(f"{path} is empty: remove it, or leave it out of the paths")
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _checked_value(value, f"{path}, row {row}", field)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a parquet file, or a damaged one ({first_line(error)}): write it anew"
        ) from error


def _checked_value(value: object, where: str, field: str) -> Document:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field {field!r} holds {type(value).__name__} instead of text: set data.files.text_field to the field that "
            "holds the text"
        )
    return checked_document(value, where)
