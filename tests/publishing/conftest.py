"""A finished run without having run it: the report's factories, and the lock files that DVC would have written."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

import factories

from efficientllm import config, paths, pipeline
from efficientllm.reporting.evidence import collect
from efficientllm.reporting.page import render


def write_lock(root: Path) -> None:
    """Writes what `dvc repro` would have written about the files that are there."""

    def entries(*files: Path) -> list[dict[str, Any]]:
        return [
            {"path": file.as_posix(), "hash": "md5", "md5": hashlib.md5((root / file).read_bytes()).hexdigest()}
            for file in files
        ]

    parameters = YAML(typ="safe").load((root / paths.PARAMETERS).read_text())
    profile = YAML(typ="safe").load((root / paths.PROFILES / "cpu.yaml").read_text())
    named = ("profile", "method", "architectures", "methods", "precisions", "sizes", "replicas")
    results = [paths.RESULTS / name for name in ("results.csv", "ranking.csv")]
    stages: dict[str, Any] = {
        "prepare": {
            "cmd": "p",
            "params": {"params.yaml": {"seed": parameters["seed"]}, "profiles/cpu.yaml": {"data": profile["data"]}},
        },
        "tune@lora-small": {
            "cmd": "t",
            "params": {"profiles/cpu.yaml": {"tune.training": profile["tune"]["training"]}},
        },
        # of a cell that was declared once, from another profile and other parameters
        "tune@oft-small": {"cmd": "t", "params": {"params.yaml": {"seed": 7}, "profiles/old.yaml": {"data": 1}}},
        "normalize": {"cmd": "n", "deps": [], "outs": entries(*results, paths.RESULTS / "metrics.json")},
        "report": {
            "cmd": "r",
            "deps": entries(paths.HARDWARE, *results),
            "params": {"params.yaml": {key: parameters[key] for key in named}},
            "outs": entries(paths.REPORT),
        },
    }
    for lock in pipeline.LOCKS:
        known = {name: stage for name, stage in stages.items() if pipeline.lock(name) == lock}
        (root / lock).parent.mkdir(parents=True, exist_ok=True)
        pipeline.write_lock(root / lock, known)


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    factories.make_run(root)
    page = root / paths.REPORT
    page.parent.mkdir(parents=True)
    page.write_text(render(collect(config.load(root), root)), encoding="utf-8")
    write_lock(root)
    return root


@pytest.fixture
def run(_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a repository with a finished run."""
    import shutil

    root = tmp_path / "clone"
    shutil.copytree(_template, root)
    for command in (
        ["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"],
    ):  # fmt: skip
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    monkeypatch.chdir(root)
    return root
