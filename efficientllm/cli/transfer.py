"""Commands on DVC's cache: moving records from one machine to another, and checking that its files are intact."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientllm.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Declares `export-records`, `import-records` and `verify`."""
    exporting = add_command(
        commands, "export-records", _export, "write the measured records of this clone to an archive",
        "The archive also holds what each record depended on, so that another clone can reuse those that match its own hardware, "
        "code, parameters and data.",
    )  # fmt: skip
    exporting.add_argument("archive", type=Path, metavar="ARCHIVE", help="the .tar.gz file to write")
    importing = add_command(
        commands, "import-records", _import, "reuse records that were measured on a machine of the same kind",
        "`dvc repro` then uses those whose hardware, code, parameters and data are the same, and measures the rest.",
    )  # fmt: skip
    importing.add_argument("archive", type=Path, metavar="ARCHIVE", help="a file that export-records wrote")
    add_command(
        commands, "verify", _verify, "remove damaged files from DVC's cache",
        "DVC itself would go on using them; afterwards, `dvc pull` or `dvc repro` brings them back.",
    )  # fmt: skip


def _export(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm.transfer import export_records

    count = export_records(arguments.archive)
    yield f"{count} record{'s' if count != 1 else ''} in {arguments.archive}"


def _import(arguments: argparse.Namespace) -> Iterator[str]:
    from efficientllm import paths
    from efficientllm.transfer import import_records

    found = import_records(arguments.archive)
    yield f"{found.records} record{'s' if found.records != 1 else ''} imported"
    if not Path(paths.HARDWARE).exists():
        yield f"whether they are from this kind of machine is not known until `dvc repro probe` has written {paths.HARDWARE}"
    elif found.of_this_machine < found.records:
        others = found.records - found.of_this_machine
        yield (
            f"{others} of them {'was' if others == 1 else 'were'} measured on different hardware than {paths.HARDWARE} describes, "
            "and will be measured again here"
        )
    yield "`dvc repro` reuses those whose hardware, code, parameters and data are the same"


def _verify(_: argparse.Namespace) -> Iterator[str]:
    from efficientllm.cache import local_cache, remove_damaged

    checked, removed = remove_damaged(local_cache())
    for path in removed:
        yield f"removed {path}: its content is not what its name says"
    yield f"{checked} files checked, {len(removed)} removed" + ("; now `dvc pull` or `dvc repro`" if removed else "")
