"""Tunes one size of the dense pretrained model by one method."""

import argparse

from efficientllm import paths, registry
from efficientllm.stage import run_cell, run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, choices=registry.method_keys())
    parser.add_argument("--size", required=True, choices=registry.SIZES)
    arguments = parser.parse_args(argv)

    from efficientllm import config

    configuration = config.load()
    cell = registry.cell_name(arguments.method, arguments.size)
    configuration.require_cell("tune", cell)

    def work() -> None:
        from efficientllm.distributed.launch import train_in_parallel
        from efficientllm.tuning.tune import tune

        profile, command = configuration.profile, ["--method", arguments.method, "--size", arguments.size]
        train_in_parallel(
            profile, profile.tune.training.for_size(arguments.size), "stages.tune", command,
            lambda: tune(configuration, arguments.method, arguments.size),
        )  # fmt: skip

    base = paths.artifact("base", arguments.size)
    return run_cell("tune", cell, [paths.DATA, base], work)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
