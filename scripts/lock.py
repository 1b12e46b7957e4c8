"""Writes the versions that are installed in this environment into constraints.txt."""

import subprocess
import sys
from pathlib import Path

HEADER = "# Versions that this release is tested with, as pip constraints: name==version. Refresh with `make lock`.\n"
LEFT_OUT = {"efficientllm", "pip", "wheel"}


def main() -> None:
    """Freezes the environment; torch's build (`+cpu`) is left to the set-up."""
    # --all: setuptools, which torch needs, is left out of the list otherwise
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = []
    for line in frozen.stdout.splitlines():
        name, separator, version = line.partition("==")
        if separator and name.lower() not in LEFT_OUT:
            lines.append(f"{name}=={version.split('+')[0]}")
    destination = Path(__file__).resolve().parent.parent / "constraints.txt"
    destination.write_text(HEADER + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
