"""A copy of this repository in which the whole pipeline has run once with the smoke profile."""

import pytest
from project import Project, working_copy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro`; tests that change it put it back."""
    project = working_copy(tmp_path_factory.mktemp("pipeline") / "project")
    output = project.run("dvc", "repro").stdout
    (project.root.parent / "repro.log").write_text(output)
    project.commit()
    return project
