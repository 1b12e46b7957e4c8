"""DVC's repository, and the integrity of its cache: DVC protects its files against writing, and then believes them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientllm.errors import ArtifactError, first_line


@contextmanager
def dvc_repository(root: Path, refusal: str, remedy: str = ": `dvc status` tells more") -> Iterator[Any]:
    """Opens the DVC repository that a folder is in.

    Args:
        root: The folder.
        refusal: What an error says before DVC's own words.
        remedy: What it says after them.

    Raises:
        ArtifactError: DVC refuses the repository, or what is asked of it meanwhile.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repository:
            yield repository
    except DvcException as error:
        raise ArtifactError(f"{refusal} ({first_line(error)}){remedy}") from error


def local_cache() -> Path:
    """Returns the folder of the cached files of the repository in the working directory.

    Raises:
        ArtifactError: There is no DVC repository.
    """
    with dvc_repository(Path(), "there is no DVC repository here", remedy="") as repository:
        return Path(repository.cache.local.path)


def remove_damaged(cache: Path) -> tuple[int, list[Path]]:
    """Removes the files whose MD5 is not that in their name.

    Args:
        cache: Folder of the cached files, `files/md5` of a DVC cache.

    Returns:
        How many files there were, and those that were removed.

    Raises:
        ArtifactError: A file cannot be read or removed.
    """
    files = sorted(path for path in cache.glob("[0-9a-f][0-9a-f]/*") if path.is_file())
    try:
        damaged = [path for path in files if file_md5(path) != path.parent.name + path.name.removesuffix(".dir")]
        for path in damaged:
            path.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot check the cache: {error.filename} ({error.strerror})") from error
    return len(files), damaged


def md5(content: bytes) -> str:
    """Returns the hash by which DVC knows a content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def file_md5(path: Path) -> str:
    """Returns the hash by which DVC knows a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
