"""Whether a base's own tokenizer keeps the held-out text: what it drops or alters, the model need not predict."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from efficientllm.errors import ParameterError

_LOST_SHARE = 0.01
"""Share of lost characters above which a base is refused: bits per byte would be off by about as much, which is half the
width of its usual 95 % interval."""


def check_text_kept(size: str, source: Path, texts: Sequence[str], returned: str) -> None:
    """Checks that the characters of the held-out text come back from a base's tokens; prints a line where a few do not.

    Characters are counted, for a tokenizer may drop what it does not know without any unknown token. Characters that are
    canonically equivalent are the same text: the tokenizers of Qwen2 and Pythia compose them.

    Args:
        size: A key of `bases` in params.yaml.
        source: What it names.
        texts: The held-out documents.
        returned: What the tokenizer gives back of them.

    Raises:
        ParameterError: More than a hundredth of the characters is lost.
    """
    wanted = _characters("".join(texts))
    lost = wanted - _characters(returned)
    if not lost:
        return
    fault = f"{lost.total()} of {wanted.total()} characters of the held-out text, the most frequent {lost.most_common(1)[0][0]!r}"
    if lost.total() > _LOST_SHARE * wanted.total():
        raise ParameterError(
            f"bases.{size} in params.yaml is {source}, whose tokenizer loses {fault}: perplexity and bits per byte would be "
            "those of another text: name a base whose tokenizer gives the text back (a byte-level one gives back any), or "
            "prepare text that it knows"
        )
    print(
        f"bases.{size}: the tokenizer of {source} loses {fault}; perplexity and bits per byte are of a text without them"
    )


def _characters(text: str) -> Counter[str]:
    return Counter(unicodedata.normalize("NFC", text))
