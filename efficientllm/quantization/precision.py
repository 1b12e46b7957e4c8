"""What a precision is: how it stores a model, how it loads it again for inference, and what it asks of the hardware."""

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientllm.config.load import component_names
from efficientllm.config.options import NoOptions, checked_options
from efficientllm.config.schema import Section
from efficientllm.errors import CellFailure, first_line, unknown_name
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import cast_weights, load_decoder, save_decoder


class Precision(ABC):
    """One way to store and compute weights.

    Args:
        key: The precision's name, which is its module's name.
        options: Class of its parameters.
        nominal_bits: Bits per weight that its name promises; what a model really takes is measured.
    """

    def __init__(self, key: str, options: type[Section], nominal_bits: int) -> None:
        self.key = key
        self.nominal_bits = nominal_bits
        self._options = options

    def options(self, settings: dict[str, Any]) -> Any:
        """Checks the precision's parameters.

        Raises:
            ParameterError: One is unknown, missing or out of range.
        """
        return checked_options(self._options, settings, f"quantize.{self.key}")

    @abstractmethod
    def save(self, decoder: Decoder, folder: Path, options: Any) -> None:
        """Quantizes a float32 model and writes it, loadable without the original.

        Raises:
            CellFailure: The hardware lacks the type.
        """

    @abstractmethod
    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads a stored model for inference.

        Raises:
            ArtifactError: The folder holds no such model, or a damaged one.
            CellFailure: The hardware lacks the type.
        """

    @abstractmethod
    def convert(self, module: nn.Module, options: Any) -> None:
        """Quantizes a model in memory and in place, on the device where it lies: the same numbers as `save` and `load`.

        Args:
            module: A decoder, or any model of linear layers, for the comparison with other libraries' models.
            options: The precision's parameters.

        Raises:
            CellFailure: The hardware lacks the type.
        """


class CastPrecision(Precision):
    """A floating-point type that the whole model is cast to, embeddings, head and norms included.

    Args:
        key: The precision's name.
        dtype: The type.
    """

    def __init__(self, key: str, dtype: torch.dtype) -> None:
        super().__init__(key, NoOptions, dtype.itemsize * 8)
        self._dtype = dtype

    def save(self, decoder: Decoder, folder: Path, options: Any) -> None:
        """Casts every weight and writes the model in the form of a pretrained one."""
        del options
        save_decoder(folder, decoder.to(self._dtype))

    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads the weights in their stored type."""
        require_type(self._dtype, torch.device(device))
        return load_decoder(folder, device=device, dtype=self._dtype).requires_grad_(False).eval()

    def convert(self, module: nn.Module, options: Any) -> None:
        """Casts every weight."""
        del options
        require_type(self._dtype, next(module.parameters()).device)
        cast_weights(module, self._dtype)


def require_type(dtype: torch.dtype, device: torch.device) -> None:
    """Checks that a device computes in a type.

    A CPU without instructions for 16-bit types emulates them: slowly, but it computes, and the hardware's instruction
    sets stand in the record.

    Raises:
        CellFailure: It does not.
    """
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise CellFailure(f"{torch.cuda.get_device_name(device)} does not compute in {name}: choose another type")
        return
    try:
        nn.functional.linear(torch.ones(1, 8, dtype=dtype), torch.ones(8, 8, dtype=dtype))
    except RuntimeError as error:
        raise CellFailure(f"PyTorch does not compute in {name} on this CPU: {first_line(error)}") from error


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
