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
from efficientllm.quantization.precision import precision
from efficientllm.registry import cell_name
from efficientllm.tuning.tune import load_tuned

_DESCRIPTION = "quantization.json"


def tuned_folder(configuration: Configuration, size: str) -> Path:
    """Folder of the tuned model that quantization starts from: the one of the top-level `method`."""
    return paths.artifact("tune", cell_name(configuration.parameters.method, size))


def quantize(configuration: Configuration, precision_key: str, size: str) -> None:
    """Stores the tuned model of a size in one precision.

    Args:
        configuration: The run's parameters.
        precision_key: Key of the precision.
        size: `small`, `medium` or `large`.

    Raises:
        ArtifactError: The tuned model is missing or damaged.
    """
    implementation = precision(precision_key)
    options = implementation.options(configuration.profile.quantize[precision_key])
    decoder = load_tuned(tuned_folder(configuration, size))
    with whole_directory(paths.artifact("quantize", cell_name(precision_key, size))) as folder:
        implementation.save(decoder, folder, options)
        copy_tokenizer(base_folder(size), folder)
        description = {"precision": precision_key, "size": size, "method": configuration.parameters.method}
        write_json(folder / _DESCRIPTION, description)


def load_quantized(folder: Path, *, device: Any = "cpu") -> Decoder:
    """Loads a quantized model for inference.

    Raises:
        ArtifactError: The folder holds no quantized model, or a damaged one.
        CellFailure: The hardware lacks the precision's type.
    """
    description = read_json(folder / _DESCRIPTION)
    if not isinstance(description, dict) or "precision" not in description:
        raise ArtifactError(f"{folder / _DESCRIPTION} names no precision: run `dvc repro` again")
    return precision(description["precision"]).load(folder, device=device)
