"""int8: LLM.int8() by bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339).

Each row of a linear layer's weights has one scale, and each token's activations another; they are multiplied as 8-bit
integers. Columns of the activations with an entry above a threshold are multiplied in 16 bits instead (their section 3.2).
To find them the host waits for the device in every layer, so that a step cannot be recorded as a CUDA graph. A threshold
of 0 leaves that out: plain vector-wise quantization, which can be recorded. Embeddings, the output head and norms stay in
the compute type.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.quantization.linear import KEPT_LAYERS, LinearPrecision


class Int8Options(Section):
    """Parameters of LLM.int8(): from which magnitude on an activation is an outlier, and the type of all the rest.

    The matrix products round activations to float16 first, so that another compute type costs a cast in each layer.
    """

    outlier_threshold: float = Field(ge=0)
    compute_type: Literal["bfloat16", "float16"]


class Int8Precision(LinearPrecision):
    """8-bit integer weights and activations."""

    def configuration(self, options: Int8Options) -> Any:
        """Describes the quantization to Transformers."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=options.outlier_threshold,
            llm_int8_skip_modules=list(KEPT_LAYERS),
        )

    def layer(self, linear: nn.Linear, options: Int8Options) -> nn.Module:
        """Rounds a layer's weights row by row."""
        from bitsandbytes.functional import int8_vectorwise_quant
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        with torch.device("meta"):
            made = Linear8bitLt(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                has_fp16_weights=False,
                threshold=options.outlier_threshold,
            )
        packed, scales, _ = int8_vectorwise_quant(linear.weight.detach().to(torch.float16))
        made.weight = Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)
        made.bias = linear.bias
        return made

    def finish(self, layer: Any) -> None:
        """Registers the scales, which bitsandbytes keeps out of the module, so that whoever weighs it counts them."""
        if layer.weight.CB is not None:
            layer.init_8bit_state()
        layer.register_buffer("row_scales", layer.state.SCB, persistent=False)


PRECISION = Int8Precision("int8", Int8Options, nominal_bits=8)
