"""Checks all parameters, then describes this machine."""

import argparse

from efficientllm import config, paths, preload
from efficientllm.files import write_json
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    configuration = config.load()
    preload.start_ahead()  # for the stages after this one, which is busy for seconds

    from efficientllm.config.grid import check_grid, data_fingerprint
    from efficientllm.measurement.hardware import probe, write_hardware

    check_grid(configuration)
    write_hardware(paths.HARDWARE, probe())
    # constant as long as the parameters are valid and the user's own files are the same: everything depends on it, so a
    # bad parameter stops the pipeline before any work
    write_json(paths.CHECKED, {"parameters": "valid", "files": data_fingerprint(configuration)})
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
