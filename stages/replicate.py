"""Trains one cell once more from another seed, for the spread of its quality."""

import argparse

from efficientllm import registry
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    cell_options = parser.add_mutually_exclusive_group(required=True)
    cell_options.add_argument("--architecture", help="a pretraining run, a key of `architectures` in params.yaml")
    cell_options.add_argument("--method", help="a tuning method, with --size")
    parser.add_argument("--size", choices=registry.SIZES)
    parser.add_argument("--seed", required=True, type=int)
    arguments = parser.parse_args(argv)
    if (arguments.method is None) != (arguments.size is None):
        parser.error("--method and --size go together")
    axis: registry.TrainedAxis = "pretrain" if arguments.method is None else "tune"
    cell = arguments.architecture if axis == "pretrain" else registry.cell_name(arguments.method, arguments.size)

    from efficientllm import config

    configuration = config.load()
    configuration.require_cell(axis, cell)

    from efficientllm.replication import replicate

    replicate(configuration, axis, cell, arguments.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
