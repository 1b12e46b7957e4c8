"""The manifest of the prepared data: what is in the folder, where it comes from, and the hash of every file."""

from pathlib import Path
from typing import Any

from efficientllm.errors import ArtifactError
from efficientllm.files import file_hash, read_json, write_json

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
_KEYS = frozenset({"schema_version", "source", "splits", "vocabulary_size", "tokenizer", "baselines", "task", "files"})


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Adds the size and hash of every file of the folder to the facts, and writes `manifest.json`.

    The content depends on the data and the parameters only: no time, no machine.

    Args:
        folder: Folder that holds all other files of the prepared data.
        facts: All keys of the manifest but `schema_version` and `files`.

    Returns:
        The manifest.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {**facts, "schema_version": SCHEMA_VERSION, "files": files}
    write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a folder that `prepare` wrote.

    Raises:
        ArtifactError: It is missing, damaged, or of another version.
    """
    path = folder / MANIFEST_FILE
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION or _KEYS - manifest.keys():
        raise ArtifactError(f"{path} is not a manifest of version {SCHEMA_VERSION}: run `dvc repro` again")
    return manifest
