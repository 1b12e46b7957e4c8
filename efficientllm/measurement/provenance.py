"""Where a record comes from."""

import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any

from efficientllm import __version__
from efficientllm.records import Provenance

_DISTRIBUTIONS = ("torch", "transformers", "peft", "bitsandbytes", "codecarbon", "numpy", "tokenizers", "dvc")


def provenance(
    *, seed: int, profile: str, kernels: dict[str, str], hashes: dict[str, str], hardware: dict[str, Any]
) -> Provenance:
    """Describes software, source revision, inputs and hardware of a measurement.

    Args:
        seed: The run's seed.
        profile: The profile's name.
        kernels: Which implementation of each part ran.
        hashes: Content hashes of the inputs.
        hardware: The content of hardware.json.
    """
    versions = {"efficientllm": __version__}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    revision, dirty = git_state()
    return Provenance(
        seed=seed, profile=profile, kernels=kernels, versions=versions, git_revision=revision, git_dirty=dirty,
        hashes=hashes, hardware=hardware,
    )  # fmt: skip


def git_state(root: Path = Path()) -> tuple[str | None, bool | None]:
    """Returns the commit that is checked out and whether tracked code differs from it; None where git cannot tell.

    Args:
        root: The repository's root.
    """
    git = shutil.which("git")
    if git is None:
        return None, None
    # outputs of the pipeline itself do not make the code another one
    code = ["--", "efficientllm", "stages", "profiles", "params.yaml", "dvc.yaml", ":(exclude,glob)**/dvc.lock"]
    try:
        revision = subprocess.run(
            [git, "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run(
            [git, "status", "--porcelain", "--untracked-files=no", *code],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return None, None
    return revision.stdout.strip(), bool(status.stdout.strip())
