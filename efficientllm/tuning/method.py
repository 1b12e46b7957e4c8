"""What a tuning method is: how it prepares a base model, what it trains, what it has to store, how it is loaded."""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientllm.config.load import component_names
from efficientllm.config.options import checked_options
from efficientllm.config.schema import MethodSettings, Section, TrainingSettings
from efficientllm.errors import unknown_name
from efficientllm.models.decoder import Decoder
from efficientllm.training.optimizer import parameter_groups


@dataclass(frozen=True)
class TunableModel:
    """A base model made ready for a method.

    Args:
        module: The module that holds the trainable parameters, possibly wrapped around the decoder.
        decoder: The decoder to call.
    """

    module: nn.Module
    decoder: Decoder


class TuningMethod(ABC):
    """One way to tune a model.

    Args:
        key: The method's name, which is its module's name.
        options: Class of the method's own parameters, without the learning rate.
    """

    stored_per_trained = 1
    """Numbers that `save` writes for each that is trained."""

    def __init__(self, key: str, options: type[Section]) -> None:
        self.key = key
        self._options = options

    def options(self, settings: MethodSettings) -> Any:
        """Checks the method's own parameters.

        Raises:
            ParameterError: One is unknown, missing or out of range.
        """
        return checked_options(self._options, settings.model_extra or {}, f"tune.methods.{self.key}")

    @abstractmethod
    def prepare(
        self, base: Path, options: Any, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Loads the base model and makes exactly the method's parameters trainable.

        Args:
            base: Folder of the base model.
            options: The method's parameters, as `options` returned them.
            device: Where to put the model.
            dtype: Type of the base's weights.
        """

    @abstractmethod
    def save(self, model: TunableModel, folder: Path) -> None:
        """Writes what the method has to store beside the base model (for full tuning: the whole model)."""

    @abstractmethod
    def load(self, folder: Path, base: Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """Loads a tuned model for inference, its adapters merged into the weights."""

    def groups(self, model: TunableModel, options: Any, training: TrainingSettings) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer; a group's `lr_scale` multiplies the learning rate."""
        del options  # methods with several learning rates read theirs here
        return parameter_groups(model.module, training)


def tuning_method(key: str) -> TuningMethod:
    """Imports a method's module, and no other's.

    Raises:
        ParameterError: There is no such method.
    """
    known = component_names("tuning/methods")
    if key not in known:
        raise unknown_name("tuning method", key, known)
    method: TuningMethod = importlib.import_module(f"efficientllm.tuning.methods.{key}").METHOD
    return method
