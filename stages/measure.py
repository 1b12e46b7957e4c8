"""Measures one trained or quantized cell on this machine and writes its record."""

import argparse

from efficientllm import registry
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axis", required=True, choices=registry.AXES)
    parser.add_argument("--cell", required=True, help="for example dense_medium, lora-small or int4-large")
    arguments = parser.parse_args(argv)

    from efficientllm import config

    configuration = config.load()
    configuration.require_cell(arguments.axis, arguments.cell)

    from efficientllm.measurement.cell import measure_cell

    measure_cell(configuration, arguments.axis, arguments.cell)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
