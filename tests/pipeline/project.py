"""A working copy of this repository, for tests that run the pipeline in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from efficientllm import pipeline

ROOT = Path(__file__).parents[2]


class Project:
    """A working copy, and the commands that a user would type in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        runtime = root.parent / "run"  # preloaded processes of this copy's own
        runtime.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),  # the copy's package, where an editable installation would give the original's
            "XDG_RUNTIME_DIR": str(runtime),
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command and returns what it printed, both streams together."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-6000:]}"
        )
        return done

    def replace(self, path: str, old: str, new: str) -> None:
        """Edits a file."""
        text = (self.root / path).read_text()
        assert old in text, f"{old!r} is not in {path}"
        (self.root / path).write_text(text.replace(old, new))

    def narrow(self) -> None:
        """Leaves one cell of each axis: the smallest."""
        text = YAML()
        parameters = text.load(self.root / "params.yaml")
        for name in [name for name in parameters["architectures"] if name != "dense_small"]:
            del parameters["architectures"][name]
        parameters |= {"methods": ["lora"], "precisions": ["bfloat16"], "sizes": ["small"]}
        parameters["bases"] = {"small": parameters["bases"]["small"]}
        parameters["replicas"] |= {"architectures": ["dense_small"], "methods": ["lora"]}
        text.dump(parameters, self.root / "params.yaml")

    def commit(self) -> None:
        """Commits everything."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", "state")

    @staticmethod
    def stages_run(output: str) -> list[str]:
        """Names of the stages that DVC says it ran."""
        return [pipeline.name(line.split("'")[1]) for line in output.splitlines() if "Running stage '" in line]


def working_copy(destination: Path) -> Project:
    """Copies what git tracks or would track, and makes it a repository of its own with the smoke profile."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, destination / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    project = Project(destination)
    for lock in pipeline.LOCKS:
        (destination / lock).unlink(missing_ok=True)
    project.replace("params.yaml", "profile: cpu", "profile: smoke")
    project.run("git", "init", "-q")
    project.commit()
    return project
