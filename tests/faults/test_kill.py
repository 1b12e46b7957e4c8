"""SIGKILL in every kind of stage: nothing half-written is taken for finished, and the same command goes on."""

import json

import pytest

from efficientllm.files import check_directory, content_hash, file_hash
from tests.faults.cells import OUTPUTS, STAGES
from tests.pipeline.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def state(project: Project, output: str) -> str | None:
    """Hash of an output's content; None where it is absent."""
    path = project.root / output
    if path.is_dir():
        check_directory(path)
        return content_hash(
            {str(file.relative_to(path)): file_hash(file) for file in path.rglob("*") if file.is_file()}
        )
    return file_hash(path) if path.exists() else None


def leftovers(project: Project) -> list[str]:
    return [str(path.relative_to(project.root)) for path in project.root.rglob(".*.partial")]


@pytest.mark.parametrize("name", STAGES)
def test_killed_stage(copy: Project, name: str) -> None:
    before = {output: state(copy, output) for output in OUTPUTS[name]}
    for output in OUTPUTS[name]:
        for moment in ("half", "renaming"):
            order = json.dumps({"stage": name, "moment": moment, "target": output})
            killed = copy.run("python", "-m", "tests.faults.struck", order, check=False)
            assert killed.returncode in (137, -9), killed.stdout
            if killed.returncode == 137:  # its cell was another process, which it outlived
                assert killed.stdout.splitlines()[-1] == (
                    "error: the cell's process was killed by SIGKILL, which the system sends when memory runs out: run the same "
                    "command again to continue"
                )
            assert leftovers(copy), "the kill came too early or too late"
            for other in OUTPUTS[name]:
                volatile = "telemetry" in other or "measure" in other
                assert volatile or state(copy, other) in (None, before[other]), f"{other} is neither the old nor whole"
    copy.run("python", "-m", f"stages.{name}", *STAGES[name])
    assert leftovers(copy) == []
    for output in OUTPUTS[name]:
        if name != "measure" and "telemetry" not in output:
            assert state(copy, output) == before[output], output
        assert state(copy, output) is not None
