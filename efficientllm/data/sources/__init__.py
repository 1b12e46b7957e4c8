"""Sources of text behind one interface: a function from the data settings to a `Corpus`."""

from efficientllm.config.schema import DataSettings
from efficientllm.data.document import Corpus


def read_source(settings: DataSettings) -> Corpus:
    """Reads the documents of the source that the profile names.

    Args:
        settings: The block `data` of the profile.

    Raises:
        DataError: The source cannot be read; the message names the file and the line.
    """
    # each source is imported for its own use only: pyarrow and datasets are slow to load
    if settings.source == "sotu":
        from efficientllm.data.sources.sotu import read_sotu

        return read_sotu()
    if settings.source == "files":
        assert settings.files is not None, "config.load refuses it"
        from efficientllm.data.sources.files import read_files

        return read_files(settings.files)
    assert settings.huggingface is not None, "config.load refuses it"
    from efficientllm.data.sources.huggingface import read_hub

    return read_hub(settings.huggingface)
