"""QLoRA: LoRA on a base whose linear layers are held in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)."""

from pathlib import Path
from typing import Any

import torch

from efficientllm.errors import ArtifactError
from efficientllm.models.decoder import Decoder
from efficientllm.tuning.method import TunableModel
from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config, silence


class QLoRA(PeftMethod):
    """LoRA over NF4 weights with double quantization; products are computed in the type of the base's other weights."""

    def prepare(
        self, base: Path, options: Any, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Quantizes the base and injects freshly initialised adapters into its linear layers."""
        from peft import get_peft_model

        model = _quantized(base, device, dtype)
        with silence():
            module = get_peft_model(model, low_rank_config(options))
        return TunableModel(module, model.decoder)

    def load(self, folder: Path, base: Path, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        """Expands the quantized base and merges the adapters into it: the function that was trained, in plain weights.

        Raises:
            ArtifactError: The adapter or the base is missing or damaged.
        """
        from peft import PeftModel
        from safetensors import SafetensorError

        try:
            model = _quantized(base, device, dtype).dequantize().to(dtype)
            with silence():
                merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} cannot be loaded on {base} ({error}): run `dvc repro` again") from error
        decoder: Decoder = merged.decoder
        return decoder.requires_grad_(False).eval()


def _quantized(base: Path, device: Any, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return EfficientLLMForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=dtype, device_map={"": str(device)}
    )


METHOD = QLoRA("qlora", LowRankOptions, low_rank_config)
