"""Full tuning: every weight is trained, and the whole model is stored."""

from pathlib import Path
from typing import Any

import torch

from efficientllm.config.options import NoOptions
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import load_decoder, save_decoder
from efficientllm.tuning.method import TunableModel, TuningMethod


class FullTuning(TuningMethod):
    """Trains all weights."""

    def prepare(
        self, base: Path, options: NoOptions, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Loads the base with every parameter trainable."""
        del options
        decoder = load_decoder(base, device=device, dtype=dtype).requires_grad_(True)
        return TunableModel(decoder, decoder)

    def save(self, model: TunableModel, folder: Path) -> None:
        """Writes the whole model, in the form of a pretrained one."""
        save_decoder(folder, model.decoder)

    def load(self, folder: Path, base: Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """Loads the whole model; the base is not needed."""
        del base, dtype
        return load_decoder(folder, device=device).requires_grad_(False).eval()


METHOD = FullTuning("full", NoOptions)
