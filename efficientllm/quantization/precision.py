"""What a precision is: how it stores a model and how it loads it again for inference."""

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from efficientllm.config.load import component_names
from efficientllm.config.options import checked_options
from efficientllm.config.schema import Section
from efficientllm.errors import unknown_name
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import load_decoder, save_decoder


class Precision(ABC):
    """One way to store and compute weights.

    Args:
        key: The precision's name, which is its module's name.
        options: Class of its parameters.
    """

    def __init__(self, key: str, options: type[Section]) -> None:
        self.key = key
        self._options = options

    def options(self, settings: dict[str, Any]) -> Any:
        """Checks the precision's parameters.

        Raises:
            ParameterError: One is unknown, missing or out of range.
        """
        return checked_options(self._options, settings, f"quantize.{self.key}")

    @abstractmethod
    def save(self, decoder: Decoder, folder: Path, options: Any) -> None:
        """Quantizes a float32 model and writes it, loadable without the original."""

    @abstractmethod
    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads a stored model for inference.

        Raises:
            ArtifactError: The folder holds no such model, or a damaged one.
            CellFailure: The hardware lacks the type.
        """


class NoOptions(Section):
    """A precision without parameters."""


class CastPrecision(Precision):
    """A floating-point type that the whole model is cast to, embeddings and norms included.

    Args:
        key: The precision's name.
        dtype: The type.
    """

    def __init__(self, key: str, dtype: torch.dtype) -> None:
        super().__init__(key, NoOptions)
        self._dtype = dtype

    def save(self, decoder: Decoder, folder: Path, options: Any) -> None:
        """Casts every weight and writes the model in the form of a pretrained one."""
        del options
        save_decoder(folder, decoder.to(self._dtype))

    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads the weights in their stored type."""
        return load_decoder(folder, device=device, dtype=self._dtype).requires_grad_(False).eval()


def precision(key: str) -> Precision:
    """Imports a precision's module, and no other's.

    Raises:
        ParameterError: There is no such precision.
    """
    known = component_names("quantization/precisions")
    if key not in known:
        raise unknown_name("precision", key, known)
    found: Precision = importlib.import_module(f"efficientllm.quantization.precisions.{key}").PRECISION
    return found
