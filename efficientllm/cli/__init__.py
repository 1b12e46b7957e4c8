"""Checks and runs the pipeline, and ranks, compares, shares and publishes its results."""

import argparse
import io
import os
import sys

from efficientllm import __version__
from efficientllm.cli import compare, machine, publish, rank, repro, transfer
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; those of the process where it is None.

    Returns:
        Exit code: 0, or 1 after an error that was printed as one line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        return run_stage(lambda: _run(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader has had enough, as `head` does
        _discard_output()
        return 0


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="efficientllm", description=__doc__)
    parser.add_argument("--version", action="version", version=f"efficientllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # each module declares its commands; what they need is imported when one of them runs, so that --help is quick
    for module in (machine, repro, rank, compare, transfer, publish):
        module.add_commands(commands)
    _check_text(argv)
    arguments = parser.parse_args(argv)
    try:
        for line in arguments.run(arguments):
            _print(line)
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file that may be any, where no command knows better
        where = "" if error.filename is None else f"{error.filename}: "
        raise ArtifactError(f"{where}{error.strerror or repr(error)}") from error
    return 0


def _check_text(argv: list[str]) -> None:
    """Refuses bytes that are no text: tables, pages and other programs' arguments could not hold them."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"{argument!r} is no valid text in this locale: rename the file, or use UTF-8"
            ) from error


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise ArtifactError(f"cannot write to standard output: {error.strerror}") from error


def _discard_output() -> None:
    """Leads standard output to nowhere, or the interpreter's last flush would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
