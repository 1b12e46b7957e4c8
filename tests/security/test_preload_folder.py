"""The folder of the preloading server belongs to one user, and is where it seems to be."""

import os
import sys
from pathlib import Path

import pytest

from efficientllm import preload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are preloaded on Linux only")


def test_nobody_else_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(preload, "_LONGEST_RUNTIME_FOLDER", 1000)
    folder = preload._folder()
    assert folder.parent.parent == tmp_path
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may write to the temporary folder could lead the server into another of the user's folders."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(preload, "_LONGEST_RUNTIME_FOLDER", 1000)
    (tmp_path / "own").mkdir(mode=0o755)
    (tmp_path / f"efficientllm-{os.getuid()}").symlink_to(tmp_path / "own")
    with pytest.raises(PermissionError, match="is a link, or belongs to another user"):
        preload._folder()
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o755
    assert not list((tmp_path / "own").iterdir())
