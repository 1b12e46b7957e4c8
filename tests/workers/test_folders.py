"""Workers' folders: clones of the user's folder as it is now, on its cache, whatever its path and its past."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efficientllm import paths
from efficientllm.cache import dvc_repository
from efficientllm.workers.folders import FOLDER, make_folder

CONFIGURATION: Any = SimpleNamespace(parameters=SimpleNamespace(bases={}))


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.check_output(["git", *identity, *arguments], cwd=root, text=True).strip()


def commit(root: Path, text: str) -> str:
    (root / "code.py").write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", text)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def make_root(make_dvc_root: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        root = make_dvc_root(place)
        (root / ".gitignore").write_text(f"{paths.HARDWARE}\n{paths.ARTIFACTS}\n{FOLDER}\n")
        for made in (paths.HARDWARE, paths.CHECKED):
            (root / made).parent.mkdir(parents=True, exist_ok=True)
            (root / made).write_text("{}")
        git(root, "init", "-q")
        commit(root, f"of {place.name}")
        return root

    return make


@pytest.mark.parametrize("name", ["plain", "a, b", "a #1", "Größe 'x'", '"x"'])
def test_the_cache_is_found_whatever_its_path(tmp_path: Path, make_root: Callable[[Path], Path], name: str) -> None:
    root = make_root(tmp_path / name)
    folder = make_folder(1, CONFIGURATION, root / ".dvc" / "cache", root)
    with dvc_repository(folder, "refused") as repository:
        assert Path(repository.cache.local_cache_dir) == root / ".dvc" / "cache"


def test_a_clone_that_was_killed_is_made_anew(tmp_path: Path, make_root: Callable[[Path], Path]) -> None:
    root = make_root(tmp_path / "root")
    begun = root / FOLDER / "1.partial"
    begun.mkdir(parents=True)
    git(begun, "init", "-q")
    folder = make_folder(1, CONFIGURATION, root / ".dvc" / "cache", root)
    assert git(folder, "rev-parse", "HEAD") == git(root, "rev-parse", "HEAD")
    assert not begun.exists()


def test_a_folder_that_has_moved_is_what_workers_run(tmp_path: Path, make_root: Callable[[Path], Path]) -> None:
    root = make_root(tmp_path / "root")
    make_folder(1, CONFIGURATION, root / ".dvc" / "cache", root)
    moved = root.rename(tmp_path / "moved")
    commit(make_root(root), "of another clone in its place")
    newest = commit(moved, "since it was moved")
    assert git(make_folder(1, CONFIGURATION, moved / ".dvc" / "cache", moved), "rev-parse", "HEAD") == newest
