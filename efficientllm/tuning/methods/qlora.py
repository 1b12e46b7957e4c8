"""QLoRA: LoRA on a base whose linear layers are held in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)."""

from pathlib import Path
from typing import Any

import torch

from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config


class QLoRA(PeftMethod):
    """LoRA over NF4 weights with double quantization; products are computed in the type of the base's other weights."""

    def _base_model(self, base: Path, device: Any, dtype: torch.dtype) -> Any:
        from transformers import BitsAndBytesConfig

        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        return EfficientLLMForCausalLM.from_pretrained(
            base, quantization_config=quantization, dtype=dtype, device_map={"": str(device)}
        )

    def _unquantized_base_model(self, base: Path, device: Any, dtype: torch.dtype) -> Any:
        # merged into the expanded weights, so that the function is the one that was trained
        return self._base_model(base, device, dtype).dequantize().to(dtype)


METHOD = QLoRA("qlora", LowRankOptions, low_rank_config)
