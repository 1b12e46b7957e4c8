"""Methods that PEFT implements: adapters injected into the linear layers of a frozen base.

PEFT and Transformers are imported only when such a method is used, for their import takes seconds.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError
from efficientllm.files import read_json, write_json
from efficientllm.models.decoder import Decoder
from efficientllm.tuning.method import TunableModel, TuningMethod

if TYPE_CHECKING:
    from peft import PeftConfig

_CONFIG = "adapter_config.json"


class LowRankOptions(Section):
    """Parameters of the LoRA family (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A on every linear layer."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)


class PeftMethod(TuningMethod):
    """A method given by a PEFT configuration.

    Args:
        key: The method's name.
        options: Class of its parameters.
        peft_config: Builds the PEFT configuration from the parameters.
    """

    def __init__(self, key: str, options: type[Section], peft_config: "Callable[[Any], PeftConfig]") -> None:
        super().__init__(key, options)
        self._peft_config = peft_config

    def prepare(
        self, base: Path, options: Any, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Freezes the base and injects freshly initialised adapters into its linear layers.

        Raises:
            CellFailure: The method cannot adapt one of the base's layers with these parameters.
        """
        from peft import get_peft_model

        model = self._base_model(base, device, dtype)
        layers = {
            name: layer
            for block in model.decoder.blocks()
            for name, layer in block.named_modules()
            if isinstance(layer, nn.Linear)
        }
        self._check_layers(layers, options)
        with silence():
            module = get_peft_model(model, self._peft_config(options))
        return TunableModel(module, model.decoder)

    def save(self, model: TunableModel, folder: Path) -> None:
        """Writes PEFT's `adapter_model.safetensors` and `adapter_config.json`."""
        self._write(model, folder)

    def _write(self, model: TunableModel, folder: Path, **conversion: Any) -> None:
        with silence():
            model.module.save_pretrained(str(folder), safe_serialization=True, **conversion)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        # a set in PEFT, so in another order in every process: then the same model would not be the same artifact
        described = read_json(folder / _CONFIG)
        write_json(folder / _CONFIG, {**described, "target_modules": sorted(described["target_modules"])})

    def load(self, folder: Path, base: Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """Merges the adapters into the base weights.

        Raises:
            ArtifactError: The adapter or the base is missing or damaged.
        """
        from peft import PeftModel
        from safetensors import SafetensorError

        try:
            model = self._unquantized_base_model(base, device, dtype)
            with silence():
                merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} cannot be loaded on {base} ({error}): run `dvc repro` again") from error
        decoder: Decoder = merged.decoder
        return decoder.requires_grad_(False).eval()

    def _check_layers(self, layers: Mapping[str, nn.Linear], options: Any) -> None:
        """Raises CellFailure where the method cannot adapt one of a block's layers."""

    def _base_model(self, base: Path, device: Any, dtype: torch.dtype) -> Any:
        """Loads what the adapters are injected into."""
        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        return EfficientLLMForCausalLM.from_folder(base, device=device, dtype=dtype)

    def _unquantized_base_model(self, base: Path, device: Any, dtype: torch.dtype) -> Any:
        """Loads what trained adapters are merged into: the same model in plain weights."""
        return self._base_model(base, device, dtype)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hides deprecation warnings that PEFT's calls to Transformers raise: nobody here can act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def low_rank_config(options: LowRankOptions, **variant: Any) -> "PeftConfig":
    """Builds PEFT's LoRA configuration on every linear layer but the output head.

    Args:
        options: Rank, scale and dropout, the same for every method of the family.
        variant: What sets the method apart, for example `use_dora=True`.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
        **variant,
    )
