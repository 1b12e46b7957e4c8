"""Trains one cell once more from another seed, for the spread of its quality."""

import argparse

from efficientllm import config
from efficientllm.errors import ParameterError
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axis", required=True, choices=["pretrain", "tune"])
    parser.add_argument("--cell", required=True)
    parser.add_argument("--seed", required=True, type=int)
    arguments = parser.parse_args(argv)
    configuration = config.load()
    known = {row.cell for row in configuration.rows() if row.axis == arguments.axis}
    if arguments.cell not in known:
        raise ParameterError(f"replicas names the cell {arguments.cell!r}, which this run leaves out: {sorted(known)}")

    from efficientllm.training.replicate import replicate

    replicate(configuration, arguments.axis, arguments.cell, arguments.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
