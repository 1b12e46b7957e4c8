"""What the parts of the corpus script hand to each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """A piece of a source: a chapter of a book, or a page of a manual.

    Args:
        title: Its title.
        paragraphs: Its clean paragraphs, in order.
    """

    title: str
    paragraphs: list[str]


@dataclass(frozen=True)
class Package:
    """A registry package.

    Args:
        registry: `pypi`, `npm` or `debian`.
        name: Its name; for Debian, alternatives in the order in which they are tried, parted by "|".
        version: The version to take; null takes what the distribution has.
        licence_file: Glob of the file in it that states the licence; null where another package of the source does.
    """

    registry: str
    name: str
    version: str | None = None
    licence_file: str | None = "usr/share/doc/*/copyright"


@dataclass(frozen=True)
class Source:
    """A source of the corpus: one JSONL file.

    Args:
        name: Name of the file.
        description: What the text is.
        licence: Licence of the text.
        evidence: Regular expression that every licence file of the packages must match, blanks folded: a package that
            no longer says so is refused.
        packages: The packages that hold the text.
        read: Reads pages from the folder into which the packages are unpacked.
        shortest_duplicate: Paragraphs of fewer characters may occur more than once, as in dialogue.
    """

    name: str
    description: str
    licence: str
    evidence: str
    packages: tuple[Package, ...]
    read: Callable[[Path], Iterator[Page]] = field(repr=False)
    shortest_duplicate: int = 1


class SourceError(Exception):
    """A source cannot be had; the message says why."""
