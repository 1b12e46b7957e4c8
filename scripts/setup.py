"""Makes the virtual environment .venv with this project and its locked dependencies.

Needs only the Python that runs it. torch comes first, in the build that fits the machine: a CPU build where there is no
NVIDIA GPU, since the CUDA build is several gigabytes; the CUDA build where there is one. Nothing happens when the
environment is up to date. Another Python, or a GPU that came or went, makes the environment anew: pip would take the
torch that is there for the one that is wanted.

Annotations stay plain, so that an old Python can read this far and say that it is too old.
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
CONSTRAINTS = ROOT / "constraints.txt"
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
    machine, locked = _machine(), _fingerprint()
    done = STAMP.read_text().split("\n") if STAMP.exists() else [""]
    if done == [machine, locked]:
        return 0
    if ENVIRONMENT.exists() and not STAMP.exists():
        print(
            f"error: {ENVIRONMENT} was not made by this script: move it away or delete it, then try again",
            file=sys.stderr,
        )
        return 1
    print(f"setting up {ENVIRONMENT}: a few minutes and about 2 GB on a CPU, more with CUDA", flush=True)
    try:
        if done[0] != machine:
            _make_environment()
            STAMP.write_text(machine)
        _install_torch()
        _pip("-c", str(CONSTRAINTS), "-e", f"{ROOT}[{EXTRAS}]")
    except subprocess.CalledProcessError as error:
        print((error.output or b"").decode(errors="replace"), end="", file=sys.stderr)
        print(
            f"error: this step failed, see above; run the same command again to go on: {_shown(error.cmd)}",
            file=sys.stderr,
        )
        return 1
    STAMP.write_text(f"{machine}\n{locked}")
    return 0


def _machine() -> str:
    """Names what an environment cannot change after it is made."""
    return f"Python {platform.python_version()}, {'NVIDIA GPU' if _has_nvidia_gpu() else 'no NVIDIA GPU'}"


def _fingerprint() -> str:
    sources = [ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _make_environment() -> None:
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    ENVIRONMENT.mkdir()
    # marks the folder as ours from the start: what a killed set-up leaves is made anew by the next
    STAMP.write_text("unfinished")
    # in this process, since the Python that runs it may be the one of the environment just removed
    venv.create(ENVIRONMENT, with_pip=True)


def _shown(command: object) -> str:
    return " ".join(map(str, command)) if isinstance(command, (list, tuple)) else str(command)


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
    found = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("error: constraints.txt names no version of torch")
    return found[1]


def _install_torch() -> None:
    """Installs torch before anything else can pull in another build of it."""
    version = _locked_torch()
    if sys.platform == "linux" and not _has_nvidia_gpu():
        print("no NVIDIA GPU: looking for a CPU build of torch", flush=True)
        # most machines' pip offers none, which is no fault to show
        if _try("-m", "pip", "install", "--quiet", f"torch=={version}+cpu", stderr=subprocess.DEVNULL):
            return
        # uv knows where PyTorch keeps its CPU builds
        uv = ("-m", "uv", "pip", "install", "--quiet", "--python", str(_python()), "--torch-backend=cpu")
        if _try("-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), "uv") and _try(*uv, f"torch=={version}"):
            return
        print(
            "no CPU build can be had, see above: installing the standard build, several gigabytes with CUDA", flush=True
        )
    _pip(f"torch=={version}")


def _try(*arguments: str, stderr: "int | None" = None) -> bool:
    return subprocess.run([str(_python()), *arguments], stderr=stderr, check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
