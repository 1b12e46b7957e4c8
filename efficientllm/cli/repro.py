"""The command that runs the pipeline with several workers."""

import argparse
from collections.abc import Iterator
from typing import Any

from efficientllm.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Declares `repro`."""
    parser = add_command(
        commands, "repro", _repro, "run the pipeline on all GPUs of this machine at once, then the report",
        "Each worker runs in its own clone under .dvc/tmp/workers, sharing this folder's cache. If interrupted, finished work is "
        "kept; run the same command again to continue.",
    )  # fmt: skip
    parser.add_argument(
        "targets", nargs="*", metavar="STAGE", help="run only these stages or stage groups, and what they depend on"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of workers (default: one per GPU)")


def _repro(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm.workers.repro import repro

    repro(arguments.workers, arguments.targets)
    yield f"{', '.join(arguments.targets) or 'the whole pipeline'} has run"
