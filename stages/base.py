"""Brings what a size is tuned from into one form, and evaluates it."""

import argparse
from pathlib import Path

from efficientllm import paths, registry
from efficientllm.errors import unknown_name
from efficientllm.stage import run_cell, run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True, choices=registry.SIZES)
    arguments = parser.parse_args(argv)

    from efficientllm import config

    configuration = config.load()

    def work() -> None:
        from efficientllm.bases.base import make_base

        make_base(configuration, arguments.size)

    if arguments.size not in configuration.parameters.bases:
        raise unknown_name("base", arguments.size, configuration.parameters.bases)
    source = Path(configuration.parameters.bases[arguments.size])
    return run_cell("base", arguments.size, [paths.DATA, source], work)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
