"""From the source to everything that training, tuning and measuring read."""

import hashlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from efficientllm.config import Configuration
from efficientllm.config.schema import DataSettings
from efficientllm.data.baselines import baselines
from efficientllm.data.document import Corpus, Document
from efficientllm.data.manifest import write_manifest
from efficientllm.data.packing import check_size, write_split
from efficientllm.data.sources import read_source
from efficientllm.data.splits import SPLITS, Split, split_documents
from efficientllm.data.tasks import Example, corpus_task, file_task, read_task, task_facts, task_texts, write_examples
from efficientllm.data.tokenizer import TextTokenizer, adopt_tokenizer, save_tokenizer, train_tokenizer
from efficientllm.errors import DataError
from efficientllm.files import whole_directory

_SAMPLE_DOCUMENTS = 64
_SAMPLE_CHARACTERS = 2000
_LOST_SHARE = 0.1


def prepare(
    configuration: Configuration, destination: Path, announce: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """Reads, divides, tokenizes and packs the corpus, and makes the instruction task.

    Args:
        configuration: The run's parameters; `seed`, `data`, and of `pretrain.training` the batch's shape are read.
        destination: Folder to write, whole or not at all.
        announce: Is told what is being done.

    Returns:
        The manifest.

    Raises:
        DataError: The source, the task or the tokenizer cannot be used, or the corpus is too small.
    """
    settings, seed = configuration.profile.data, configuration.parameters.seed
    announce("reading the source")
    corpus = read_source(settings)
    documents = _without_duplicates(corpus.documents)
    divided = split_documents(
        documents, validation_fraction=settings.validation_fraction, test_fraction=settings.test_fraction, seed=seed
    )
    announce("making the instruction task")
    task = _task(settings, divided, seed)
    announce("training the tokenizer" if settings.tokenizer.path is None else "reading the tokenizer")
    tokenizer = _tokenizer(settings, divided)
    with whole_directory(destination) as folder:
        announce("encoding the text")
        tokens = {split: tokenizer.encode_documents(document.text for document in divided[split]) for split in SPLITS}
        training = configuration.profile.pretrain.training
        check_size(len(tokens["train"]), sequence_length=training.sequence_length, batch_size=training.batch_size)
        for split in SPLITS:
            write_split(folder, split, tokens[split])
            write_examples(folder, split, task[split])
        save_tokenizer(folder, tokenizer)
        announce("counting the baselines")
        splits: dict[Split, dict[str, Any]] = {
            split: {
                "documents": len(divided[split]),
                "bytes": sum(len(document.text.encode()) for document in divided[split]),
                "tokens": len(tokens[split]),
            }
            for split in SPLITS
        }
        facts = {
            "source": _describe(corpus, len(documents)),
            "splits": splits,
            "seed": seed,
            "vocabulary_size": tokenizer.vocabulary_size,
            "tokenizer": {
                "kind": "byte-level BPE, trained on the training split"
                if settings.tokenizer.path is None
                else "existing",
                "path": settings.tokenizer.path,
                "end_token": tokenizer.end_token,
                "end_token_id": tokenizer.end_token_id,
                "lossless": tokenizer.keeps(chain((document.text for document in divided["test"]), task_texts(task))),
            },
            "baselines": baselines(
                tokens["train"],
                tokens["test"],
                vocabulary_size=tokenizer.vocabulary_size,
                test_bytes=splits["test"]["bytes"],
            ),
            "task": {"source": settings.task.source, "path": settings.task.path, "groups": task_facts(task)},
        }
        return write_manifest(folder, facts)


def _check_coverage(tokenizer: TextTokenizer, documents: list[Document], path: str) -> None:
    """Checks that a tokenizer of somebody else's knows the characters of a sample, whatever it does to their case.

    The sample is the middle of documents from all over the corpus: the first may be in another language than most, and
    a document may begin with a notice that is.

    Raises:
        DataError: More than a tenth of the sample's characters do not come back.
    """
    wanted_characters = 0
    lost: list[str] = []
    for document in documents[:: -(-len(documents) // _SAMPLE_DOCUMENTS)]:
        start = max(0, (len(document.text) - _SAMPLE_CHARACTERS) // 2)
        sample = document.text[start : start + _SAMPLE_CHARACTERS]
        known = set(tokenizer.decode(tokenizer.encode([sample])[0]).casefold())
        wanted = "".join(sample.casefold().split())
        wanted_characters += len(wanted)
        lost += [character for character in wanted if character not in known]
    if len(lost) > _LOST_SHARE * wanted_characters:
        raise DataError(
            f"data.tokenizer.path: {path} does not know {len(lost)} of {wanted_characters} characters of a sample of the "
            f"text, such as {lost[0]!r}: choose a byte-level tokenizer, or set train_vocabulary_size and no path"
        )


def _without_duplicates(documents: list[Document]) -> list[Document]:
    """Keeps the first of documents with the same text, so that none is in two splits."""
    unique: dict[bytes, Document] = {}
    for document in documents:
        unique.setdefault(hashlib.sha256(document.text.encode()).digest(), document)
    return list(unique.values())


def _describe(corpus: Corpus, kept: int) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "licence": corpus.licence,
        "revision": corpus.revision,
        "documents": kept,
        "duplicate_documents_removed": len(corpus.documents) - kept,
        **corpus.details,
    }


def _task(settings: DataSettings, divided: dict[Split, list[Document]], seed: int) -> dict[Split, list[Example]]:
    """Makes the instruction task; that of the addresses keeps their split where they are the corpus too."""
    task = settings.task
    if task.path is None:
        return corpus_task(
            divided if settings.source == "sotu" else _divided_addresses(settings, seed),
            passage_words=task.passage_words,
            training_examples=task.training_examples,
            test_examples=task.test_examples,
            seed=seed,
        )
    return file_task(
        read_task(Path(task.path)),
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        training_examples=task.training_examples,
        test_examples=task.test_examples,
        seed=seed,
    )


def _divided_addresses(settings: DataSettings, seed: int) -> dict[Split, list[Document]]:
    from efficientllm.data.sources.sotu import read_sotu

    return split_documents(
        _without_duplicates(read_sotu().documents),
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=seed,
    )


def _tokenizer(settings: DataSettings, divided: dict[Split, list[Document]]) -> TextTokenizer:
    if settings.tokenizer.path is not None:
        adopted = adopt_tokenizer(Path(settings.tokenizer.path))
        _check_coverage(adopted, [document for split in SPLITS for document in divided[split]], settings.tokenizer.path)
        return adopted
    size = settings.tokenizer.train_vocabulary_size
    assert size is not None  # the configuration sets exactly one of the two
    return train_tokenizer((document.text for document in divided["train"]), size)
