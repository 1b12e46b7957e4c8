"""A finished run is published, kept by Git, and left alone by DVC."""

import json
import shutil
import sys

import pytest
from project import Project

from efficientllm.files import CHECKSUMS_FILE
from efficientllm.publishing.published_set import SET_FILE

pytestmark = pytest.mark.slow


def test_a_finished_run_is_published(finished: Project) -> None:
    def command(*arguments: str) -> str:
        return finished.run(sys.executable, "-m", "efficientllm.cli", *arguments).stdout

    before = finished.run("dvc", "status").stdout
    folder = finished.root / "reports" / "published" / "here"
    try:
        printed = command("publish", "here")
        described = json.loads((folder / SET_FILE).read_text())["files"]
        assert {path.name for path in folder.iterdir()} == {*described, SET_FILE, CHECKSUMS_FILE}
        assert printed.startswith(f"published reports/published/here: {len(described) + 2} files")
        assert (folder / "index.html").read_bytes() == (finished.root / "reports" / "index.html").read_bytes()
        assert str(finished.root) not in (folder / "records.json").read_text(), "a machine's path is in the records"
        added = finished.run("git", "add", "--dry-run", "-A", "reports").stdout
        for path in folder.iterdir():
            assert f"reports/published/here/{path.name}'" in added
        assert finished.run("dvc", "status").stdout == before
        assert "here/index.html" in (folder.parent / "index.html").read_text()
        compared = command("compare", ".", "reports/published/here", "HEAD", "--metric", "energy_per_token")
        assert compared.splitlines()[-1].startswith("0 of ")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        finished.run("git", "checkout", "-q", "--", "reports/published")
    assert finished.run("git", "status", "--porcelain", "reports").stdout == ""
