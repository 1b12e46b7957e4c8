"""Draws the pipeline into README.md, between the markers `<!-- dag:start -->` and `<!-- dag:end -->`."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_FILE = re.compile(r"[\w/]+/dvc\.yaml:")
START, END = "<!-- dag:start -->", "<!-- dag:end -->"


def drawn(readme: str, dag: str) -> str:
    """Returns the text of README.md with the drawing in its place, its stages by their names alone."""
    head, rest = readme.split(START)
    tail = rest.split(END)[1]
    return f"{head}{START}\n{_FILE.sub('', dag).strip()}\n{END}{tail}"


def dag() -> str:
    """Asks DVC for the pipeline as a Mermaid drawing, the cells of a matrix drawn as one."""
    command = ["dvc", "dag", "--collapse-foreach-matrix", "--md"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=README.parent).stdout


def main() -> int:
    """Writes README.md."""
    README.write_text(drawn(README.read_text(encoding="utf-8"), dag()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
