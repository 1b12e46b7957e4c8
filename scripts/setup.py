"""Makes the virtual environment .venv with this project and its locked dependencies.

Needs only the Python that runs it. torch comes first, in the build that fits the machine: a CPU build where there is no
NVIDIA GPU, since the CUDA build is several gigabytes; the CUDA build where there is one. Nothing happens when the
environment is up to date.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "efficientllm-setup"
EXTRAS = "dev"


def main() -> int:
    """Sets the environment up; returns an exit code."""
    if sys.version_info < OLDEST_PYTHON:
        found, wanted = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
        print(
            f"error: Python {wanted} or newer is needed, and this is {found}: PYTHON=python3.12 make repro",
            file=sys.stderr,
        )
        return 1
    stamp = _fingerprint()
    if STAMP.exists() and STAMP.read_text() == stamp:
        return 0
    print(f"setting up {ENVIRONMENT}: a few minutes and about 2 GB on a CPU, more with CUDA", flush=True)
    if not _python().exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=ENVIRONMENT.exists())
    try:
        _install_torch()
        _pip("-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{EXTRAS}]")
    except subprocess.CalledProcessError as error:
        print(
            f"error: this step failed, see above; run the same command again to go on: {' '.join(error.cmd)}",
            file=sys.stderr,
        )
        return 1
    STAMP.write_text(stamp)
    return 0


def _fingerprint() -> str:
    sources = [ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)]
    content = (
        b"".join(source.read_bytes() for source in sources) + sys.version.encode() + str(_has_nvidia_gpu()).encode()
    )
    return hashlib.sha256(content).hexdigest()


def _python() -> Path:
    return ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"


def _pip(*arguments: str) -> None:
    subprocess.run(
        [str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


def _has_nvidia_gpu() -> bool:
    """Asks the driver; a machine with the tool and no working GPU counts as having none."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        return subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0
    return Path("/proc/driver/nvidia/gpus").exists()


def _locked_torch() -> str:
    found = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("error: constraints.txt names no version of torch")
    return found[1]


def _install_torch() -> None:
    """Installs torch before anything else can pull in another build of it."""
    version = _locked_torch()
    if sys.platform == "linux" and not _has_nvidia_gpu():
        print("no NVIDIA GPU: looking for a CPU build of torch", flush=True)
        if _try([str(_python()), "-m", "pip", "install", "--quiet", f"torch=={version}+cpu"]):
            return
        # uv knows where PyTorch keeps its CPU builds
        _pip("uv")
        if _try([str(_python()), "-m", "uv", "pip", "install", "--python", str(_python()),
                 "--torch-backend=cpu", f"torch=={version}"]):  # fmt: skip
            return
        print("no CPU build can be had: installing the standard build, several gigabytes with CUDA", flush=True)
    _pip(f"torch=={version}")


def _try(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
