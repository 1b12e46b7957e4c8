"""Two clones and a remote: what one has run the other gets, and only measuring depends on the machine."""

import json
from pathlib import Path

import pytest

from tests.pipeline.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def test_a_second_clone_runs_nothing_but_the_probe(copy: Project) -> None:
    remote = copy.root.with_name(f"{copy.root.name}-remote")
    copy.run("dvc", "remote", "add", "-d", "-f", "storage", str(remote))
    copy.run("git", "commit", "-qam", "a remote for all")
    copy.run("dvc", "push", "--run-cache")
    copy.run("git", "clone", "-q", ".", str(copy.root.with_name(f"{copy.root.name}-clone")))
    clone = Project(copy.root.with_name(f"{copy.root.name}-clone"))
    assert not (clone.root / "artifacts").exists()
    clone.run("dvc", "pull", "--run-cache")
    expected = {name: (copy.root / name).read_bytes() for name in ("results/results.csv", "reports/index.html")}
    assert Project.stages_run(clone.run("dvc", "repro").stdout) == ["probe"]
    assert {name: (clone.root / name).read_bytes() for name in expected} == expected

    another_machine(clone)
    ran = Project.stages_run(clone.run("dvc", "repro").stdout)
    assert (ran[0], ran[-2:]) == ("probe", ["normalize", "report"])
    assert sorted(ran[1:-2]) == [
        "measure_pretrain@dense_small", "measure_quantize@bfloat16-small", "measure_tune@lora-small",
    ]  # fmt: skip
    record = json.loads((clone.root / "artifacts/measure/tune/lora-small.json").read_text())
    assert record["provenance"]["hardware"]["cpu"]["model"] == "Another One 9000"

    (clone.root / "sitecustomize.py").unlink()
    assert Project.stages_run(clone.run("dvc", "repro").stdout) == ["probe"], (
        "the first machine's figures are still there"
    )
    assert (clone.root / "results/results.csv").read_bytes() == expected["results/results.csv"]


def another_machine(project: Project) -> None:
    """Lets the probe find another processor, without a change of what it depends on."""
    (project.root / "sitecustomize.py").write_text(
        "import pathlib\n"
        "read = pathlib.Path.read_text\n"
        "def other(self, *given, **named):\n"
        "    text = read(self, *given, **named)\n"
        "    if str(self) != '/proc/cpuinfo':\n"
        "        return text\n"
        "    return '\\n'.join('model name : Another One 9000' if line.startswith('model name') else line\n"
        "                     for line in text.splitlines())\n"
        "pathlib.Path.read_text = other\n"
    )
    assert Path(project.environment["PYTHONPATH"]) == project.root
