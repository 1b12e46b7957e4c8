"""Pretrains one architecture."""

import argparse

from efficientllm import paths
from efficientllm.stage import run_cell, run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", required=True, help="a key of `architectures` in params.yaml")
    architecture = parser.parse_args(argv).architecture

    from efficientllm import config

    configuration = config.load()
    configuration.architecture(architecture)

    def work() -> None:
        from efficientllm.distributed.launch import train_in_parallel
        from efficientllm.training.pretrain import pretrain

        profile, command = configuration.profile, ["--architecture", architecture]
        train_in_parallel(
            profile,
            profile.pretrain.training,
            "stages.pretrain",
            command,
            lambda: pretrain(configuration, architecture),
        )

    return run_cell("pretrain", architecture, [paths.DATA], work)


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
