"""Folders that workers run in: clones of the user's own, on its cache.

What one worker has finished the others get from the cache, by DVC's record of what the stage depended on.
"""

import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from efficientllm import paths, pipeline
from efficientllm.config import Configuration
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.measurement.provenance import git_state

FOLDER = Path(".dvc") / "tmp" / "workers"


def make_folder(number: int, configuration: Configuration, cache: Path, root: Path) -> Path:
    """Makes a worker's folder, or brings that of an earlier run to the current commit.

    Args:
        number: The worker's number, from 1.
        configuration: The run's parameters.
        cache: DVC's cache of the user's own folder.
        root: That folder.

    Returns:
        The worker's folder; artifacts of an earlier run are still in it.

    Raises:
        ArtifactError: Git cannot make the clone.
    """
    folder = root.resolve() / FOLDER / str(number)
    if not (folder / ".git").exists():
        begun = folder.with_suffix(".partial")  # a clone that is killed leaves what git takes for a repository
        for stale in (begun, folder):
            shutil.rmtree(stale, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(root, "clone", "--quiet", "--no-checkout", str(root.resolve()), str(begun))
        begun.replace(folder)
    # not from its origin, where another clone may be by now: the user's folder may have been moved
    _git(folder, "fetch", "--quiet", str(root.resolve()), "HEAD")
    _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    settings = f"[cache]\n    dir = {_quoted(str(cache))}\n"
    (folder / ".dvc" / "config.local").write_text(settings, encoding="utf-8")
    for made in (paths.HARDWARE, paths.CHECKED):
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / made, folder / made)
    for base in configuration.parameters.bases.values():
        _link(Path(base), root, folder)
    return folder


def check_committed(root: Path) -> None:
    """Checks that git has what is to run.

    Args:
        root: The repository's root.

    Raises:
        ParameterError: Code or parameters differ from the commit, or there is none.
    """
    revision, dirty = git_state(root)
    if revision is None:
        raise ParameterError("workers run what git has, and this folder has no commit: git init, git add, git commit")
    if dirty:
        raise ParameterError(
            "workers run what git has, and code or parameters differ from it (git status tells): git commit, then run this again"
        )


def unite_locks(finished: Mapping[Path, Collection[str]], root: Path) -> None:
    """Writes what DVC knows of the workers' stages into the lock files of the user's folder.

    DVC would find them in its cache one by one, and write a lock file anew for each.

    Args:
        finished: The stages that this run finished, by the worker's folder.
        root: The user's folder.
    """
    for lock in pipeline.LOCKS:
        found: dict[str, Any] = {}
        for folder, stages in finished.items():
            own = [stage for stage in stages if pipeline.lock(stage) == lock]
            if own:
                known = pipeline.read_lock(folder / lock)
                found |= {stage: known[stage] for stage in own}
        if found:
            pipeline.write_lock(root / lock, pipeline.read_lock(root / lock) | found)


def _quoted(value: str) -> str:
    """A value as DVC's configuration takes it, where a comma would begin another one and a # a comment."""
    mark = next(mark for mark in ('"', "'", "'''") if mark not in value)
    return f"{mark}{value}{mark}"


def _link(base: Path, root: Path, folder: Path) -> None:
    """Lets a worker see a checkpoint that lies in the user's folder, but not in git."""
    own = folder / base
    if base.is_absolute() or base.parent == paths.PRETRAIN or own.exists() or not (root / base).exists():
        return
    own.parent.mkdir(parents=True, exist_ok=True)
    own.symlink_to((root / base).resolve())


def _git(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"git {arguments[0]} for a worker failed in {folder}: {done.stderr.strip()}")
