"""PiSSA: the adapter starts as the weight's largest singular part, the frozen rest is what remains.

Meng et al. 2024, arXiv 2404.02948, equations 2 to 4. What is stored is the difference to that start, which is a LoRA
adapter of twice the rank on the unchanged base (their section 3, "PiSSA to LoRA").
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from efficientllm.errors import CellFailure
from efficientllm.tuning.method import TunableModel
from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config

_INITIAL = "_efficientllm_initial_adapter"


class PiSSAOptions(LowRankOptions):
    """LoRA's parameters and how the singular vectors are found."""

    svd_iterations: int | None = Field(
        default=None, ge=1, description="subspace iterations of the fast randomised SVD; None for the exact one"
    )


class PiSSA(PeftMethod):
    """LoRA that starts from principal singular values and vectors."""

    stored_per_trained = 2  # the difference to the start has twice the rank

    def prepare(
        self, base: Path, options: Any, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Splits every linear layer, and keeps the start, from which the stored difference is taken."""
        model = super().prepare(base, options, device=device, dtype=dtype)
        folder = tempfile.TemporaryDirectory(prefix="efficientllm-pissa-")
        model.module.save_pretrained(folder.name, safe_serialization=True)  # type: ignore[operator]
        # lives and is deleted with the model
        object.__setattr__(model.module, _INITIAL, folder)
        return model

    def _check_layers(self, layers: Mapping[str, nn.Linear], options: Any) -> None:
        values = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
        fewest = min(values, key=values.__getitem__)
        if options.rank > values[fewest]:
            raise CellFailure(
                f"tune.methods.pissa.rank is {options.rank}, and {fewest} of the base has {values[fewest]} singular values: "
                f"set it to {values[fewest]} or less"
            )

    def save(self, model: TunableModel, folder: Path) -> None:
        """Writes the difference to the start as an ordinary LoRA adapter of twice the rank."""
        initial: tempfile.TemporaryDirectory[str] = getattr(model.module, _INITIAL)
        self._write(model, folder, path_initial_model_for_weight_conversion=initial.name)


def _config(options: PiSSAOptions) -> Any:
    start = "pissa" if options.svd_iterations is None else f"pissa_niter_{options.svd_iterations}"
    return low_rank_config(options, init_lora_weights=start)


METHOD = PiSSA("pissa", PiSSAOptions, _config)
