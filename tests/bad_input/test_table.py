"""Every bad input is one line that names it and the remedy, and the page docs/errors.md has that line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, Case
from projects import make_templates, outcome
from write_page import lines_of_page, shown_line, written

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    return make_templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture(scope="session")
def page() -> dict[str, str]:
    return lines_of_page()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.given[:60])
def test_one_line(case: Case, templates: dict[str | None, Path], page: dict[str, str], tmp_path: Path) -> None:
    if (reason := case.skip()) is not None:
        pytest.skip(reason)
    code, printed = outcome(case, templates, tmp_path / "project")
    assert code == case.code, printed
    assert "Traceback" not in printed
    if case.code == 1:
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        assert len(printed) < 420
        assert str(tmp_path) not in printed or case.hidden
    for name in case.names:
        assert name in printed
    assert page[case.given] == shown_line(case, printed)


def test_the_page_has_these_inputs_and_no_other(page: dict[str, str]) -> None:
    assert written(page) == (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert len(CASES) == len({case.given for case in CASES}) >= 60
    assert len(FROM_A_SHELL) == 4


FROM_A_SHELL = [
    case
    for case in CASES
    if case.given
    in (
        "`sed: 1`",
        "`pretrain.training.steps: 0`",
        "`python -m stages.measure --axis tune --cell lora-huge`",
        "`python -m stages.tune --method lorra --size small`",
    )
]


@pytest.mark.parametrize("case", FROM_A_SHELL, ids=lambda case: case.given)
def test_from_a_shell(case: Case, templates: dict[str | None, Path], page: dict[str, str], tmp_path: Path) -> None:
    """The same by the command that DVC runs, in a process of its own."""
    folder = shutil.copytree(templates[None], tmp_path / "project")
    case.spoil(folder)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{case.stage}", *case.arguments],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "EFFICIENTLLM_PRELOAD": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (case.code, "")
    assert shown_line(case, done.stderr) == page[case.given]
