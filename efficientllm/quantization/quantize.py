"""Quantization of a tuned model to one precision."""

from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.bases.base import base_folder
from efficientllm.config import Configuration
from efficientllm.data.tokenizer import copy_tokenizer
from efficientllm.errors import ArtifactError
from efficientllm.files import read_json, whole_directory, write_json
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import RANDOM_FILE, has_random_weights
from efficientllm.quantization.precision import precision
from efficientllm.registry import cell_name
from efficientllm.tuning.tune import load_tuned

_DESCRIPTION = "quantization.json"


def tuned_folder(configuration: Configuration, size: str) -> Path:
    """Folder of the tuned model that quantization starts from: the one of the top-level `method`."""
    return paths.artifact("tune", cell_name(configuration.parameters.method, size))


def quantize(configuration: Configuration, precision_key: str, size: str) -> None:
    """Stores the tuned model of a size in one precision; with random weights, only what makes it.

    Args:
        configuration: The run's parameters.
        precision_key: Key of the precision.
        size: `small`, `medium` or `large`.

    Raises:
        ArtifactError: The tuned model is missing or damaged.
    """
    implementation = precision(precision_key)
    settings = configuration.profile.quantize[precision_key]
    options = implementation.options(settings)
    tuned = tuned_folder(configuration, size)
    description = {
        "precision": precision_key,
        "size": size,
        "method": configuration.parameters.method,
        "options": settings,
    }
    with whole_directory(paths.artifact("quantize", cell_name(precision_key, size))) as folder:
        if has_random_weights(tuned):
            write_json(folder / RANDOM_FILE, read_json(tuned / RANDOM_FILE))
        else:
            implementation.save(load_tuned(tuned), folder, options)
        copy_tokenizer(base_folder(size), folder)
        write_json(folder / _DESCRIPTION, description)


def load_quantized(folder: Path, *, device: Any = "cpu") -> Decoder:
    """Loads a quantized model for inference; one of random weights is drawn and quantized where it is to be used.

    Raises:
        ArtifactError: The folder holds no quantized model, or a damaged one.
        CellFailure: The hardware lacks the precision's type.
    """
    description = read_json(folder / _DESCRIPTION)
    try:
        key, size, method, settings = (description[name] for name in ("precision", "size", "method", "options"))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / _DESCRIPTION} lacks {error}: run `dvc repro` again") from error
    implementation = precision(key)
    if not has_random_weights(folder):
        return implementation.load(folder, device=device)
    decoder = load_tuned(paths.artifact("tune", cell_name(method, size)), device=device)
    implementation.convert(decoder, implementation.options(settings))
    return decoder
