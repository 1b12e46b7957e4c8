"""int4: 4-bit weights of bitsandbytes, NF4 by default (Dettmers et al. 2023, arXiv 2305.14314, section 3).

The linear layers' weights are quantized in blocks of 64 with one scale each; double quantization stores the scales in
8 bits. Embeddings, the output head and norms stay in the compute type, as bitsandbytes' users have them.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError, CellFailure
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import save_decoder
from efficientllm.quantization.precision import Precision

_BLOCK = 64


class Int4Options(Section):
    """Parameters of bitsandbytes' 4-bit quantization."""

    quantization_type: Literal["nf4", "fp4"]
    double_quantization: bool
    compute_type: Literal["bfloat16", "float16", "float32"]


class Int4Precision(Precision):
    """4-bit weights by bitsandbytes."""

    def save(self, decoder: Decoder, folder: Path, options: Int4Options) -> None:
        """Quantizes the linear layers and writes packed weights and scales as safetensors."""
        import torch
        from transformers import BitsAndBytesConfig

        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        _check_shapes(decoder)
        dtype = getattr(torch, options.compute_type)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quantization_type,
            bnb_4bit_use_double_quant=options.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
        with tempfile.TemporaryDirectory() as original:
            save_decoder(Path(original), decoder)
            model = EfficientLLMForCausalLM.from_pretrained(original, quantization_config=quantization, dtype=dtype)
        model.save_pretrained(folder)

    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads packed weights; they are dequantized block by block inside each matrix product."""
        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            model = EfficientLLMForCausalLM.from_pretrained(folder, device_map={"": str(device)})
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder} cannot be loaded ({error}): run `dvc repro` again") from error
        decoder: Decoder = model.decoder
        return decoder.requires_grad_(False).eval()


def _check_shapes(decoder: Decoder) -> None:
    """Refuses shapes that bitsandbytes' CPU kernel cannot multiply.

    Raises:
        CellFailure: A layer's width is no multiple of the block size, on a CPU whose kernel needs that.
    """
    import torch
    from bitsandbytes.functional import has_avx512bf16

    if torch.cuda.is_available() or not has_avx512bf16():
        return
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and module.in_features % _BLOCK:
            raise CellFailure(
                f"bitsandbytes' 4-bit CPU kernel needs widths that are multiples of {_BLOCK}, and {name} has "
                f"{module.in_features}: change models.<size>.hidden_size or intermediate_size"
            )


PRECISION = Int4Precision("int4", Int4Options)
