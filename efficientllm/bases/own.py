"""Sources that this pipeline wrote, checked before they are copied: a fault of the copy would send to the wrong folder."""

from pathlib import Path

from efficientllm import paths
from efficientllm.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, load_tokenizer
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import MISSING_REMEDY


def check_own_checkpoint(source: Path, size: str) -> None:
    """Checks that a folder which `save_decoder` wrote can be loaded, and has a tokenizer.

    Args:
        source: The folder.
        size: The key of `bases` that names it.

    Raises:
        ArtifactError: A file is missing or damaged, or the files do not fit each other.
        ParameterError: It describes a model that cannot be built.
    """
    from efficientllm.models.weights import CONFIG_FILE as MODEL_CONFIG
    from efficientllm.models.weights import check_decoder

    remedy = f"get {source} again, or name another source"
    if source.resolve().is_relative_to(paths.ARTIFACTS.resolve()):  # DVC makes it anew
        remedy = MISSING_REMEDY
    try:
        check_decoder(source, remedy)
    except ArtifactError as error:
        raise ArtifactError(f"bases.{size}: {error}") from error
    except ParameterError as error:
        raise ParameterError(f"bases.{size}: {source / MODEL_CONFIG}: {error}") from error
    for name in (TOKENIZER_FILE, CONFIG_FILE):
        if not (source / name).is_file():
            raise ArtifactError(f"bases.{size}: {source / name} is missing: {remedy}")
    try:
        load_tokenizer(source)
    except ArtifactError as error:
        raise ArtifactError(f"bases.{size}: the tokenizer in {source} is damaged: {remedy}") from error
