"""Commands that look at the parameters and at this machine."""

import argparse
from collections.abc import Iterator
from typing import Any

from efficientllm.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Declares `check` and `doctor`."""
    add_command(commands, "check", _check, "check params.yaml and its profile, and list the cells of the run")
    add_command(
        commands,
        "doctor",
        _doctor,
        "describe this machine: what will be measured, what modelled, and how to make the rest measurable",
    )


def _check(_: argparse.Namespace) -> Iterator[str]:
    from efficientllm import config, paths
    from efficientllm.config.grid import check_grid, data_fingerprint

    configuration = config.load()
    check_grid(configuration)
    data_fingerprint(configuration)
    rows = configuration.rows()
    yield f"{paths.PARAMETERS} and {paths.PROFILES / configuration.parameters.profile}.yaml are valid:"
    for axis in dict.fromkeys(row.axis for row in rows):
        cells = dict.fromkeys(row.cell for row in rows if row.axis == axis)
        yield f"  {axis}: {len(cells)} cells: {', '.join(cells)}"


def _doctor(_: argparse.Namespace) -> list[str]:
    from efficientllm.measurement.hardware import describe, probe

    return describe(probe())
