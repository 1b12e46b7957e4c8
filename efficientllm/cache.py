"""The integrity of DVC's cache: DVC protects its files against writing, and then believes them."""

import hashlib
from pathlib import Path

from efficientllm.errors import ArtifactError


def local_cache() -> Path:
    """Returns the folder of the cached files of the repository in the working directory.

    Raises:
        ArtifactError: There is no DVC repository.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Path(Repo().cache.local.path)
    except DvcException as error:
        raise ArtifactError(f"there is no DVC repository here ({error})") from error


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
        damaged = [path for path in files if _md5(path) != path.parent.name + path.name.removesuffix(".dir")]
        for path in damaged:
            path.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot check the cache: {error.filename} ({error.strerror})") from error
    return len(files), damaged


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
