"""Renders the ranked, self-contained HTML report."""

import argparse
from dataclasses import replace
from pathlib import Path

from efficientllm import config, paths
from efficientllm.files import write_text
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--compare", action="append", default=[], metavar="RESULTS",
        help="a further result set to set beside this run's: a CSV file, a folder, an experiment or a commit; may be repeated",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=paths.REPORT, help="the page's file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    configuration = config.load()

    from efficientllm.ranking.compare import read_result_set
    from efficientllm.reporting.comparison import THIS_RUN
    from efficientllm.reporting.evidence import collect
    from efficientllm.reporting.page import render

    evidence = collect(configuration)
    sets = [replace(read_result_set(str(paths.RESULTS)), name=THIS_RUN)] if arguments.compare else []
    sets += [read_result_set(reference) for reference in arguments.compare]
    page = render(evidence, sets)
    write_text(arguments.output, page)
    print(f"report: {arguments.output} ({len(page.encode()) / 1000:.0f} kB), opens in any browser without a network")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
