"""The command that runs the pipeline by several workers."""

import argparse
from collections.abc import Iterator
from typing import Any

from efficientllm.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Declares `repro`."""
    parser = add_command(
        commands, "repro", _repro, "run the pipeline on all GPUs of this machine at once, then the report",
        "Each worker runs in a clone of its own below .dvc/tmp/workers, on this folder's cache. What has run is kept when the "
        "command is interrupted; the same command goes on.",
    )  # fmt: skip
    parser.add_argument(
        "targets", nargs="*", metavar="STAGE", help="run these stages only, or groups of them, and what they need"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="how many (default: one for each GPU)")


def _repro(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm.workers.repro import repro

    repro(arguments.workers, arguments.targets)
    yield f"{', '.join(arguments.targets) or 'the whole pipeline'} has run"
