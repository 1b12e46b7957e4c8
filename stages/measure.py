"""Measures one trained or quantized cell on this machine and writes its record."""

import argparse

from efficientllm import config, registry
from efficientllm.errors import unknown_name
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axis", required=True, choices=registry.AXES)
    parser.add_argument("--cell", required=True, help="for example dense_medium, lora-small or int4-large")
    arguments = parser.parse_args(argv)
    configuration = config.load()
    known = {row.cell for row in configuration.rows() if row.axis == arguments.axis}
    if arguments.cell not in known:
        raise unknown_name(f"{arguments.axis} cell", arguments.cell, known)

    from efficientllm.measurement.cell import measure_cell

    measure_cell(configuration, arguments.axis, arguments.cell)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
