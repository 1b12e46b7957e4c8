"""The command that publishes a finished run."""

import argparse
from collections.abc import Iterator
from typing import Any

from efficientllm.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Declares `publish`."""
    parser = add_command(
        commands, "publish", _publish, "copy the finished run into reports/published/NAME, and rebuild the index of published sets",
        "The folder holds the report, the tables, all records and what the run depended on; commit it to Git.",
    )  # fmt: skip
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="letters, digits, - _ and . (default: the profile and the device)"
    )
    parser.add_argument("--index", action="store_true", help="only rebuild the index, for example after deleting a set")


def _publish(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.index:
        yield from _write_index(arguments.name)
        return

    from efficientllm.publishing.publish import publish

    done = publish(arguments.name)
    yield f"{'replaced' if done.replaced else 'published'} {done.folder}: {done.files} files, {done.size / 1000:.0f} kB"
    yield f"index of {done.sets} published set{'s' if done.sets != 1 else ''}: {done.index}"
    yield f"to share it: git add {done.index.parent} && git commit"


def _write_index(name: str | None) -> Iterator[str]:
    from efficientllm import paths
    from efficientllm.errors import ParameterError
    from efficientllm.publishing.published_set import INDEX_FILE, write_index

    if name is not None:
        raise ParameterError(f"--index publishes nothing: leave out {name!r}, or --index")
    sets = write_index(paths.PUBLISHED)
    yield f"index of {sets} published set{'s' if sets != 1 else ''}: {paths.PUBLISHED / INDEX_FILE}"
