"""float16: IEEE 754 binary16, 11 bits of significand and a largest value of 65,504."""

import torch

from efficientllm.quantization.precision import CastPrecision

PRECISION = CastPrecision("float16", torch.float16)
