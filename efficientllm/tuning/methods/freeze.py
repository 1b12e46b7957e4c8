"""Freeze tuning: the last layers are trained, all else is frozen (the paper's and LLaMA-Factory's `freeze`)."""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import load_decoder
from efficientllm.tuning.method import TunableModel, TuningMethod

_WEIGHTS = "trained_layers.safetensors"


class FreezeOptions(Section):
    """How many of the last layers are trained."""

    trainable_layers: int = Field(ge=1)


class FreezeTuning(TuningMethod):
    """Trains the last `trainable_layers` layers and stores those alone."""

    def prepare(
        self, base: Path, options: FreezeOptions, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Loads the base with its last layers trainable.

        Raises:
            ParameterError: The model has fewer layers than are to be trained.
        """
        decoder = load_decoder(base, device=device, dtype=dtype).requires_grad_(False)
        layers = list(decoder.layers)
        if options.trainable_layers > len(layers):
            raise ParameterError(
                f"tune.methods.freeze.trainable_layers is {options.trainable_layers}, but the model of {base} has "
                f"{len(layers)} layers"
            )
        for layer in layers[-options.trainable_layers :]:
            layer.requires_grad_(True)
        return TunableModel(decoder, decoder)

    def save(self, model: TunableModel, folder: Path) -> None:
        """Writes the trained layers' tensors."""
        trained = {
            name: parameter.detach().contiguous()
            for name, parameter in model.decoder.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, folder / _WEIGHTS, metadata={"format": "pt"})

    def load(self, folder: Path, base: Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """Lays the trained layers over the base.

        Raises:
            ArtifactError: The stored layers are missing, damaged, or not this model's.
        """
        decoder = load_decoder(base, device=device, dtype=dtype).requires_grad_(False)
        parameters = dict(decoder.named_parameters())
        try:
            trained = load_file(folder / _WEIGHTS, device=str(device))
            with torch.no_grad():
                for name, tensor in trained.items():
                    parameters[name].copy_(tensor)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ArtifactError(f"{folder / _WEIGHTS} does not fit {base} ({error}): run `dvc repro` again") from error
        return decoder.eval()


METHOD = FreezeTuning("freeze", FreezeOptions)
