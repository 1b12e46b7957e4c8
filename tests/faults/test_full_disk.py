"""A disk that fills up: one line, the old files stay, nothing half-written stays, and with room again the command succeeds."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efficientllm.files import file_hash
from tests.faults.cells import OUTPUTS, STAGES
from tests.faults.conftest import Stage

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

SIZES = {
    "artifacts/data": 2_000_000,
    "artifacts/pretrain/dense_small": 300_000,
    "artifacts/base/small": 300_000,
    "artifacts/tune/lora-small": 20_000,
    "artifacts/quantize/bfloat16-small": 200_000,
    "artifacts/measure/tune/lora-small.json": 8_000,
    "results/results.csv": 4_000,
    "reports/index.html": 100_000,
}
"""Bytes that are left, fewer than what the stage writes."""


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may become larger: where no disk can be mounted, this is the nearest to a full one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Puts a disk with that much room in the place of a folder, with the folder's files on it."""
    kept = folder.with_name(f"{folder.name}.kept")
    if folder.exists():
        shutil.copytree(folder, kept)
    else:
        folder.mkdir(parents=True)
        kept.mkdir()
    used = sum(4096 * -(-file.stat().st_size // 4096) for file in kept.rglob("*") if file.is_file())
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={used + size}", "none", folder], check=False)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        shutil.rmtree(kept)


def snapshot(workspace: Path) -> dict[str, str]:
    return {
        str(path.relative_to(workspace)): file_hash(path)
        for folder in ("artifacts", "results", "reports")
        for path in (workspace / folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", ["largest file", "full disk"])
def test_no_room(stage: Stage, workspace: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str) -> None:
    target = OUTPUTS[name][0]
    profile = workspace / "profiles" / "smoke.yaml"  # on a slow machine the first file would be a checkpoint
    profile.write_text(profile.read_text().replace("checkpoint_seconds: 5.0", "checkpoint_seconds: 3600.0"))
    before = snapshot(workspace)
    if kind == "largest file":
        with largest_file(SIZES[target]):
            code = stage(name, *STAGES[name])
    elif os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    else:
        with small_disk((workspace / target).parent, SIZES[target]):
            code = stage(name, *STAGES[name])
    assert code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"error: cannot write {target}")
    assert any(reason in line for reason in ("File too large", "No space left on device", "no room on the disk"))
    assert snapshot(workspace) == before, "the old files stay as they were, and nothing is left beside them"
    assert stage(name, *STAGES[name]) == 0
