"""What all tests share."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # before anything imports torch: one thread for each worker, or the workers' threads wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from efficientllm.device_lock import FOLDER_VARIABLE  # which imports torch

# the cells of tests that run at the same time do not wait for one another
os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="efficientllm-locks-")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the longest tests first, and keeps those of one pipeline run on one worker."""
    for item in items:
        for fixture, group in (("finished", "pipeline"), ("small", "faults"), ("alone", "distributed")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(group))
        if "triton_device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.triton)
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture
def make_dvc_root() -> Callable[[Path], Path]:
    """Makes a folder the root of a DVC repository without Git."""

    def make(root: Path) -> Path:
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        return root

    return make


@pytest.fixture(scope="session")
def listed_stages() -> list[str]:
    """All stages of this repository, as DVC calls them."""
    command = [Path(sys.executable).parent / "dvc", "stage", "list", "--all", "--name-only"]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split()


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> Iterator["torch.device"]:
    """Where Triton's kernels run: a GPU, or the CPU where Triton's interpreter is asked for."""
    pytest.importorskip("triton")
    import torch

    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1")
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def with_index(tensor: Any, scope: Any) -> None:
        # NumPy 2.4 no longer turns an array of one element into a number, as Triton 3.6's loops ask of it
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
    yield torch.device("cpu")
