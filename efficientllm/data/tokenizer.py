"""A byte-level BPE trained on the training split, or an existing tokenizer, and the files that hold it."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientllm.errors import ArtifactError, DataError
from efficientllm.files import MISSING_REMEDY, read_json, write_json, write_text

END_OF_DOCUMENT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and its end-of-document token.

    Args:
        backend: The `tokenizers.Tokenizer`.
        end_token: The token that ends a document and an answer.
    """

    backend: Any
    end_token: str

    @property
    def end_token_id(self) -> int:
        """Id of the end-of-document token."""
        return int(self.backend.token_to_id(self.end_token))

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, which is the number of rows that the embedding needs."""
        return int(max(self.backend.get_vocab(with_added_tokens=True).values())) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts as they stand: no special token is added, and none is recognized inside the text."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes token ids; the end-of-document token is left out."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))

    def encode_documents(self, texts: Iterable[str]) -> np.ndarray:
        """Encodes documents, each followed by the end-of-document token, into one array.

        Args:
            texts: The documents.

        Returns:
            Token ids, uint16 where the vocabulary permits it, else uint32.
        """
        kind = np.uint16 if self.vocabulary_size <= 2**16 else np.uint32
        arrays: list[np.ndarray] = [np.zeros(0, kind)]
        for pieces in _batches(texts):
            for token_ids, (_, last) in zip(self.encode([text for text, _ in pieces]), pieces, strict=True):
                arrays.append(np.array([*token_ids, self.end_token_id] if last else token_ids, kind))
        return np.concatenate(arrays)

    def keeps(self, texts: Iterable[str]) -> bool:
        """Whether each of the texts comes back from its tokens as it was, to the character."""
        return all(
            self.decode(token_ids) == text
            for pieces in _batches(texts)
            for token_ids, (text, _) in zip(self.encode([text for text, _ in pieces]), pieces, strict=True)
        )


def _batches(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """The parts of the texts, each with whether it ends its text, as many at once as the library has memory for."""
    pieces: list[tuple[str, bool]] = []
    characters = 0
    for text in texts:
        parts = _parts(text)
        for number, part in enumerate(parts, start=1):
            pieces.append((part, number == len(parts)))
            characters += len(part)
            if characters >= _BATCH_CHARACTERS:
                yield pieces
                pieces, characters = [], 0
    yield pieces


def _parts(text: str) -> list[str]:
    """Cuts a very long document behind line breaks: the library needs some hundred bytes of memory per token."""
    parts, start = [], 0
    while len(text) - start > _BATCH_CHARACTERS:
        end = text.rfind("\n", start, start + _BATCH_CHARACTERS) + 1 or start + _BATCH_CHARACTERS
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> TextTokenizer:
    """Trains a byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2).

    All 256 bytes are in the vocabulary, so no text is unknown to it; id 0 is the end-of-document token. A small corpus
    yields fewer entries than asked for.

    Args:
        texts: The training split.
        vocabulary_size: Entries, the 256 bytes and the end-of-document token included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_DOCUMENT],
        # sorted: the library's own order differs between processes
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _text_tokenizer(backend, END_OF_DOCUMENT)


def adopted_files(path: Path) -> list[Path]:
    """The files that `adopt_tokenizer` reads."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    configuration = file.with_name(CONFIG_FILE)
    return [file, configuration] if configuration.is_file() else [file]


def adopt_tokenizer(path: Path) -> TextTokenizer:
    """Reads an existing tokenizer.json, or the one in a folder.

    The end-of-document token is `eos_token` of the tokenizer_config.json beside it, or else a name in common use.

    Args:
        path: The file or its folder.

    Raises:
        DataError: The file is missing or damaged, or no end-of-document token is found.
    """
    file = adopted_files(path)[0]
    if not file.is_file():
        raise DataError(f"data.tokenizer.path: {file} does not exist")
    backend = _read_backend(file)
    if backend is None:
        raise DataError(
            f"data.tokenizer.path: {file} is not a tokenizer.json of the library `tokenizers`: save it by that library"
        )
    configuration = file.with_name(CONFIG_FILE)
    names: tuple[str, ...] = _KNOWN_END_TOKENS
    if configuration.is_file():
        try:
            stated = json.loads(configuration.read_text(encoding="utf-8")).get("eos_token")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"data.tokenizer.path: {configuration} is not a JSON object ({error})") from error
        stated = stated.get("content") if isinstance(stated, dict) else stated
        names = (stated,) if isinstance(stated, str) else names
    for name in names:
        if backend.token_to_id(name) is not None:
            return _text_tokenizer(backend, name)
    raise DataError(
        f"data.tokenizer.path: {file} has no end-of-document token (looked for {', '.join(names)}): name it as eos_token "
        f"in a {CONFIG_FILE} beside it"
    )


def save_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """Writes the files that `load_tokenizer` and `transformers.AutoTokenizer.from_pretrained` read."""
    write_text(folder / TOKENIZER_FILE, tokenizer.backend.to_str(pretty=True) + "\n")
    write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.end_token,
            "eos_token": tokenizer.end_token,
            "pad_token": tokenizer.end_token,
            "clean_up_tokenization_spaces": False,
        },
    )


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Loads a tokenizer that `save_tokenizer` wrote.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    configuration = read_json(folder / CONFIG_FILE)
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise ArtifactError(f"{file} is missing: {MISSING_REMEDY}")
    backend = _read_backend(file)
    name = configuration.get("eos_token") if isinstance(configuration, dict) else None
    if backend is None or not isinstance(name, str) or backend.token_to_id(name) is None:
        raise ArtifactError(f"the tokenizer in {folder} is damaged: delete the folder and run `dvc repro` again")
    return _text_tokenizer(backend, name)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies a tokenizer's files beside a model, so that the model's folder is complete.

    Raises:
        ArtifactError: The source has no tokenizer.
    """
    for name in (TOKENIZER_FILE, CONFIG_FILE):
        if not (source / name).is_file():
            raise ArtifactError(f"{source / name} is missing: {MISSING_REMEDY}")
        shutil.copyfile(source / name, destination / name)


def _read_backend(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception:  # noqa: BLE001 - the library raises plain Exception; the caller names the file and the remedy
        return None


def _text_tokenizer(backend: Any, end_token: str) -> TextTokenizer:
    # a document that holds the text "<|endoftext|>" must not end there
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return TextTokenizer(backend, end_token)
