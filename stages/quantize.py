"""Stores the model that the top-level `method` tuned in one precision."""

import argparse

from efficientllm import paths, registry
from efficientllm.stage import run_cell, run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", required=True, choices=registry.precision_keys())
    parser.add_argument("--size", required=True, choices=registry.SIZES)
    arguments = parser.parse_args(argv)

    from efficientllm import config

    configuration = config.load()
    cell = registry.cell_name(arguments.precision, arguments.size)
    configuration.require_cell("quantize", cell)

    def work() -> None:
        from efficientllm.quantization.quantize import quantize

        quantize(configuration, arguments.precision, arguments.size)

    base = paths.artifact("base", arguments.size)
    tuned = paths.artifact("tune", registry.cell_name(configuration.parameters.method, arguments.size))
    return run_cell("quantize", cell, [base, tuned], work)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
