"""What every source yields: documents, and a description of where they come from."""

from dataclasses import dataclass, field
from typing import Any

from efficientllm.errors import DataError

STRATUM_LABEL = "era"
UNIT_LABEL = "address"


@dataclass(frozen=True)
class Document:
    r"""One document of a corpus.

    Args:
        identifier: Unique name within the corpus, for example a file name.
        text: The text, with `\n` as its only line break.
        labels: What the source knows about it. `era` is the stratum of the split; documents of one `address` are kept
            in the same split; every other label is free.
    """

    identifier: str
    text: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def stratum(self) -> str:
        """Stratum within which the split is drawn."""
        return self.labels.get(STRATUM_LABEL, "")

    @property
    def unit(self) -> str:
        """Documents of one unit never straddle the split."""
        return self.labels.get(UNIT_LABEL, self.identifier)


@dataclass(frozen=True)
class Corpus:
    """A source's documents.

    Args:
        name: The source's name.
        licence: Licence of the text, as its publisher or the user states it.
        revision: Version or revision that pins the text; null where nothing but its hash does.
        documents: The documents, in the source's own order.
        details: Further facts for the manifest.
    """

    name: str
    licence: str
    revision: str | None
    documents: list[Document]
    details: dict[str, Any] = field(default_factory=dict)


def checked_document(text: str, where: str, labels: dict[str, str] | None = None) -> Document:
    """Builds a document with uniform line breaks.

    Args:
        text: The text as read.
        where: Its place, which becomes the identifier: a file, and the line or row within it.
        labels: The document's labels.

    Raises:
        DataError: The text is empty, or holds a lone surrogate, which UTF-8 cannot express.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise DataError(f"{where} is empty: remove it, or leave it out of the paths")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X}), which is not "
            "Unicode text: repair the file"
        ) from error
    return Document(where, text, labels or {})
