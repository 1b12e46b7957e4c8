"""Reads, divides, tokenizes and packs the corpus, and makes the instruction task."""

import argparse

from efficientllm import config, paths
from efficientllm.stage import run_stage


def main(argv: list[str] | None = None) -> int:
    """Runs the stage."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    configuration = config.load()

    from rich.console import Console

    from efficientllm.data.prepare import prepare

    console = Console()
    # rich draws the spinner on a terminal only, so a log gets the summary alone
    with console.status("prepare") as status:
        manifest = prepare(configuration, paths.DATA, lambda step: status.update(f"prepare: {step}"))
    splits = manifest["splits"]
    tokens = ", ".join(f"{split} {splits[split]['tokens']:,}" for split in ("train", "validation", "test"))
    print(
        f"prepare: {manifest['source']['documents']} documents; tokens: {tokens}; vocabulary {manifest['vocabulary_size']}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
