"""Renders the ranked, self-contained HTML report."""

import argparse

from efficientllm import config, paths
from efficientllm.files import write_text
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    configuration = config.load()

    from efficientllm.reporting.evidence import collect
    from efficientllm.reporting.page import render

    page = render(collect(configuration))
    write_text(paths.REPORT, page)
    print(f"report: {paths.REPORT} ({len(page.encode()) / 1000:.0f} kB), opens in any browser without a network")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
