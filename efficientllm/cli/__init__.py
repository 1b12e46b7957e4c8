"""The `efficientllm` command: what there is to do beside running the pipeline."""

import argparse
import os
import sys

from efficientllm import __version__
from efficientllm.cli import compare, machine, publish, rank, repro, transfer
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; those of the process where it is None.

    Returns:
        Exit code: 0, or 1 after an error that was printed as one line.
    """
    try:
        return run_stage(lambda: _run(argv))
    except BrokenPipeError:  # the reader has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails again
        return 0


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="efficientllm", description=__doc__)
    parser.add_argument("--version", action="version", version=f"efficientllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # each module declares its commands; what they need is imported when one of them runs, so that --help is quick
    for module in (machine, repro, rank, compare, transfer, publish):
        module.add_commands(commands)
    arguments = parser.parse_args(argv)
    for line in arguments.run(arguments):
        print(line)
    sys.stdout.flush()
    return 0
