"""A worker that cannot go on stops the others, which would wait for its unit."""

import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efficientllm.workers import repro

NEEDED = {"probe": [], "prepare": [], "pretrain@mqa": ["prepare"], "base@small": ["pretrain@mqa"]}
DVC = """
import time
print("Running stage 'pretrain@mqa':", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "No space left")])
def test_a_worker_that_cannot_tell_what_it_does_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def make_folder(number: int, *_: Any) -> Path:
        folder = tmp_path / str(number)
        (folder / "dvc").mkdir(parents=True)
        (folder / "dvc" / "__main__.py").write_text(DVC)
        return folder

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    configuration = SimpleNamespace(profile=SimpleNamespace(parallel=SimpleNamespace(strategy="none")))
    monkeypatch.setattr("efficientllm.config.load", lambda root: configuration)
    monkeypatch.setattr(repro, "check_committed", lambda root: None)
    monkeypatch.setattr(repro, "_pipeline", lambda root: (NEEDED, tmp_path / "cache"))
    monkeypatch.setattr(repro, "_devices", lambda count: [{}] * count)
    monkeypatch.setattr(repro, "_dvc", lambda *_: None)
    monkeypatch.setattr(repro, "make_folder", make_folder)
    monkeypatch.setattr(repro, "print", refuse, raising=False)
    begun = time.monotonic()
    with pytest.raises(type(error), match=error.strerror):
        repro.repro(2, root=tmp_path)
    assert time.monotonic() - begun < 20, "its process was not ended"
