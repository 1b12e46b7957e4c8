"""Gathers the records of the declared cells, normalizes, ranks, and writes tidy tables."""

import argparse

from efficientllm import config, paths
from efficientllm.files import write_json, write_text
from efficientllm.ranking import results
from efficientllm.ranking.replicas import read_run
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    configuration = config.load()
    rows = configuration.rows()
    records = read_run(configuration)
    table = results.tabulate(rows, records)
    ranking = results.rank(table)
    write_text(paths.RESULTS / results.RESULTS_FILE, results.to_csv(table, results.Result))
    write_text(paths.RESULTS / results.RANKING_FILE, results.to_csv(ranking, results.Ranked))
    write_json(paths.RESULTS / results.SUMMARY_FILE, results.summarize(table))
    failed = [f"{axis}@{cell}" for (axis, cell), record in records.items() if record.status == "failed"]
    print(
        f"normalize: {len(rows)} rows of {len(records)} cells, {len(failed)} failed"
        + (f" ({', '.join(failed)})" if failed else "")
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
