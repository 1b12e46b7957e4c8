"""Folders that workers run in: clones of the user's own, on its cache.

What one worker has finished the others get from the cache, by DVC's record of what the stage depended on.
"""

import io
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from ruamel.yaml import YAML

from efficientllm import paths
from efficientllm.config import Configuration
from efficientllm.config.load import read_yaml
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import write_text
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(root, "clone", "--quiet", "--no-checkout", str(root.resolve()), str(folder))
    _git(folder, "fetch", "--quiet", "origin", "HEAD")
    _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
    for made in (paths.HARDWARE, paths.CHECKED):
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / made, folder / made)
    for base in configuration.parameters.bases.values():
        _link(Path(base), root, folder)
    return folder


def check_committed() -> None:
    """Checks that git has what is to run.

    Raises:
        ParameterError: Code or parameters differ from the commit, or there is none.
    """
    revision, dirty = git_state()
    if revision is None:
        raise ParameterError("workers run what git has, and this folder has no commit: git init, git add, git commit")
    if dirty:
        raise ParameterError(
            "workers run what git has, and code or parameters differ from it (git status tells): git commit, then run this again"
        )


def unite_locks(finished: Mapping[Path, Collection[str]], root: Path) -> None:
    """Writes what DVC knows of the workers' stages into the lock file of the user's folder.

    DVC would find them in its cache one by one, and write its lock file anew for each: more than a second a stage.

    Args:
        finished: The stages that this run finished, by the worker's folder.
        root: The user's folder.
    """
    lock = read_yaml(root / paths.LOCK)
    for folder, stages in finished.items():
        known = read_yaml(folder / paths.LOCK)["stages"] if stages else {}
        lock["stages"] |= {stage: known[stage] for stage in stages}
    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump(lock, text)
    write_text(root / paths.LOCK, text.getvalue())


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
