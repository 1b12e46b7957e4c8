"""bfloat16: float32's exponent range with 8 bits of significand."""

import torch

from efficientllm.quantization.precision import CastPrecision

PRECISION = CastPrecision("bfloat16", torch.bfloat16)
