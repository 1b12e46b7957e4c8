"""The `efficientllm` command: checks and descriptions that need no pipeline run."""

import argparse

from efficientllm import __version__, config, paths
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; those of the process where it is None.

    Returns:
        Exit code: 0, or 1 after an error that was printed as one line.
    """
    return run_stage(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="efficientllm", description=__doc__)
    parser.add_argument("--version", action="version", version=f"efficientllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="check params.yaml and its profile, and list the cells of the run")
    commands.add_parser(
        "doctor", help="describe this machine: what will be measured, what modelled, and how to get the rest"
    )
    commands.add_parser("verify", help="remove damaged files from DVC's cache, which DVC itself would go on using")
    arguments = parser.parse_args(argv)
    return {"check": _check, "doctor": _doctor, "verify": _verify}[arguments.command]()


def _check() -> int:
    configuration = config.load()
    rows = configuration.rows()
    print(f"{paths.PARAMETERS} and {paths.PROFILES / configuration.parameters.profile}.yaml are valid:")
    for axis in dict.fromkeys(row.axis for row in rows):
        cells = dict.fromkeys(row.cell for row in rows if row.axis == axis)
        print(f"  {axis}: {len(cells)} cells: {', '.join(cells)}")
    return 0


def _doctor() -> int:
    from efficientllm.measurement.hardware import describe, probe

    print("\n".join(describe(probe())))
    return 0


def _verify() -> int:
    from efficientllm.cache import local_cache, remove_damaged

    checked, removed = remove_damaged(local_cache())
    for path in removed:
        print(f"removed {path}: its content is not what its name says")
    print(f"{checked} files checked, {len(removed)} removed" + ("; now `dvc pull` or `dvc repro`" if removed else ""))
    return 0
