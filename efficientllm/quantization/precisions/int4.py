"""int4: 4-bit weights of bitsandbytes, NF4 by default (Dettmers et al. 2023, arXiv 2305.14314, section 3).

NF4's 16 levels are quantiles of the normal distribution. The linear layers' weights are quantized in blocks of 64 with
one scale each; double quantization stores the scales in 8 bits. Embeddings, the output head and norms stay in the
compute type.
"""

from typing import Literal

from efficientllm.quantization.linear import FourBitOptions, FourBitPrecision


class Int4Options(FourBitOptions):
    """Parameters of int4: those of all 4-bit weights, and their levels."""

    quantization_type: Literal["nf4", "fp4"]


PRECISION = FourBitPrecision("int4", Int4Options, quantization_type=None)
