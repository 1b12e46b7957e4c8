"""What README.md promises exists: make targets, commands, files, and the drawing of the pipeline."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"repro", "test"} <= named
    assert named <= targets


def test_commands_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "efficientllm" in scripts
    for command in set(re.findall(r"`efficientllm (\w+)`", README)):
        done = subprocess.run(
            [sys.executable, "-c", "from efficientllm.cli import main; main()", command, "--help"],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, f"efficientllm {command}: {done.stderr}"


def test_stages_exist(listed_stages: list[str]) -> None:
    named = re.findall(r"dvc repro (?:-f -s )?([^`\s]+@[^`\s]+)", README)
    assert len(named) >= 2
    assert set(named) <= set(listed_stages)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_profiles_are_those_that_exist() -> None:
    named = set(re.findall(r"^\| `(\w+)`", README.split("## Profiles")[1].split("##")[0], re.MULTILINE))
    assert named == {path.stem for path in (ROOT / "profiles").glob("*.yaml")}


def test_the_pipelines_drawing_is_current() -> None:
    module = script("readme_dag")
    dvc = Path(sys.executable).parent / "dvc"
    dag = subprocess.run(
        [dvc, "dag", "--collapse-foreach-matrix", "--md"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert module.drawn(README, dag) == README, "run: python scripts/readme_dag.py"
