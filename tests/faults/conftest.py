"""A finished run of one cell of each axis, in copies that tests may damage."""

import importlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientllm.stage import run_stage
from tests.pipeline.project import Project, working_copy

Stage = Callable[..., int]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro`."""

    project = working_copy(tmp_path_factory.mktemp("faults") / "project")
    project.narrow()
    project.run("dvc", "repro")
    project.commit()
    return project


@pytest.fixture
def copy(small: Project) -> Project:
    """A copy of it, beside the original: so they share preloaded processes."""
    destination = Path(tempfile.mkdtemp(prefix="copy-", dir=small.root.parent))
    shutil.copytree(small.root, destination, symlinks=True, dirs_exist_ok=True)
    return Project(destination)


@pytest.fixture
def workspace(small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run's files without git and DVC, as working directory."""
    root = tmp_path / "workspace"
    for name in ("profiles", "artifacts", "results"):
        shutil.copytree(small.root / name, root / name)
    for name in ("params.yaml", "hardware.json"):
        shutil.copy2(small.root / name, root / name)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def stage(workspace: Path) -> Stage:
    """Runs a stage in this process, in the workspace, and returns its exit code."""

    def run(name: str, *arguments: str) -> int:
        main = importlib.import_module(f"stages.{name}").main
        return run_stage(lambda: int(main(list(arguments))))

    return run
