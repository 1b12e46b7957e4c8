"""Clean prose: joining hard-wrapped lines, telling prose from listings and English from the rest, removing repetitions."""

import hashlib
import re
from collections.abc import Iterable, Iterator

from corpus.model import Page

SMALLEST_DOCUMENT = 2_000
MERGED_DOCUMENT = 6_000
LARGEST_DOCUMENT = 50_000

_WRAPPED_LINE = 55
_COMMON_WORDS = frozenset({
    "the", "of", "and", "to", "a", "in", "is", "that", "it", "for", "as", "was", "with", "be", "by", "on",
    "not", "he", "i", "his", "or", "are", "from", "at", "this", "have", "an", "which", "but", "they", "you",
    "all", "their", "has", "one", "had", "were", "her", "if", "can", "will", "when", "so", "there", "no", "my",
    "him", "them", "its", "who", "use", "used", "do", "any", "other", "may", "must", "then", "than", "she",
    "we", "your", "what", "would", "these", "more", "only", "each", "into",
})  # fmt: skip
_MANUAL_WORDS = 5
_MANUAL_LETTERS = 0.75
_ENGLISH_SHARE = 0.18
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")  # noqa: RUF001 - typographic apostrophe
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2028\u2029\u2060\ufeff\ufffc\x00-\x08\x0b-\x1f\x7f]")


def tidy(text: str) -> str:
    """Folds blanks within lines and removes invisible characters."""
    text = _UNSEEN.sub("", text.replace("\t", " "))
    return re.sub(r"[ \u00a0\u2000-\u200a\u202f\u3000]+", " ", text).strip()


def paragraphs_of(text: str) -> list[str]:
    """Cuts plain text at blank lines, and joins the lines of each paragraph where they are wrapped prose.

    Lines are wrapped prose where most of them are long or go on in lower case; verse and lists keep their lines.
    """
    found = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        lines = [line for line in map(tidy, block.split("\n")) if line]
        if lines:
            found.append((" " if _wrapped(lines) else "\n").join(lines))
    return found


def _wrapped(lines: list[str]) -> bool:
    inner = sorted(map(len, lines[:-1]))
    if not inner:
        return True
    goes_on = sum(line[0].islower() for line in lines[1:]) / len(inner)
    return inner[len(inner) // 2] >= _WRAPPED_LINE or (goes_on >= 0.5 and inner[len(inner) // 2] >= _WRAPPED_LINE // 2)


def is_manual_prose(text: str) -> bool:
    """Tells a sentence of a manual from a signature, a listing, a table's cell or a line of navigation."""
    words = _WORD.findall(text)
    if len(words) < _MANUAL_WORDS or not any(word.lower() in _COMMON_WORDS for word in words):
        return False
    plain = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
    return plain / len(text) >= _MANUAL_LETTERS


def is_english(text: str) -> bool:
    """Tells English running text by its share of common words."""
    words = _WORD.findall(text)
    return bool(words) and sum(word.lower() in _COMMON_WORDS for word in words) / len(words) >= _ENGLISH_SHARE


def without_repetitions(pages: Iterable[Page], shortest: int) -> Iterator[Page]:
    """Drops every paragraph that a page before, or the page itself, has had, letter case and punctuation aside.

    Args:
        pages: The pages.
        shortest: Paragraphs of fewer characters stay.
    """
    seen: set[bytes] = set()
    for page in pages:
        kept = []
        for paragraph in page.paragraphs:
            if len(paragraph) >= shortest and not is_heading(paragraph):
                key = hashlib.blake2b(re.sub(r"\W+", " ", paragraph.lower()).strip().encode(), digest_size=12).digest()
                if key in seen:
                    continue
                seen.add(key)
            kept.append(paragraph)
        yield Page(page.title, _without_bare_headings(kept))


HEADING = "## "


def is_heading(paragraph: str) -> bool:
    """Says whether a reader has marked the paragraph as a heading."""
    return paragraph.startswith(HEADING)


def _without_bare_headings(paragraphs: list[str]) -> list[str]:
    """Drops headings below which nothing is left."""
    kept: list[str] = []
    for paragraph in paragraphs:
        if is_heading(paragraph) and kept and is_heading(kept[-1]):
            kept.pop()
        kept.append(paragraph)
    if kept and is_heading(kept[-1]):
        kept.pop()
    return kept


def documents(pages: Iterable[Page]) -> Iterator[Page]:
    """Makes documents of a useful size: small neighbours are merged, large pages cut between paragraphs.

    What is not English, or too small after all, is dropped.
    """
    waiting = Page("", [])
    for page in pages:
        if not page.paragraphs:
            continue
        waiting = Page(waiting.title or page.title, waiting.paragraphs + page.paragraphs)
        if _size(waiting.paragraphs) >= MERGED_DOCUMENT:
            yield from _accepted(waiting)
            waiting = Page("", [])
    yield from _accepted(waiting)


def text_of(page: Page) -> str:
    """Returns the document's text: paragraphs parted by blank lines, headings without their mark."""
    return "\n\n".join(paragraph.removeprefix(HEADING) for paragraph in page.paragraphs) + "\n"


def _size(paragraphs: list[str]) -> int:
    return sum(len(paragraph) + 2 for paragraph in paragraphs)


def _accepted(page: Page) -> Iterator[Page]:
    pieces = -(-_size(page.paragraphs) // LARGEST_DOCUMENT)
    share = _size(page.paragraphs) / max(pieces, 1)
    piece: list[str] = []
    number = 1
    for position, paragraph in enumerate(page.paragraphs):
        piece.append(paragraph)
        last = position == len(page.paragraphs) - 1
        if last or (_size(piece) >= share and number < pieces):
            title = page.title if pieces == 1 else f"{page.title} ({number}/{pieces})"
            if len(text := text_of(Page(title, piece)).encode()) >= SMALLEST_DOCUMENT and is_english(text.decode()):
                yield Page(title, piece)
            piece, number = [], number + 1
