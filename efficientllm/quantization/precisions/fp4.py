"""fp4: 4-bit floating-point weights of bitsandbytes: a sign, two bits of exponent, one of significand.

As `int4`, with levels that are spaced as those of a floating-point number rather than as a normal distribution's quantiles;
the comparison of the two is that of Dettmers et al. 2023, arXiv 2305.14314, section 4.
"""

from efficientllm.quantization.linear import FourBitOptions, FourBitPrecision

PRECISION = FourBitPrecision("fp4", FourBitOptions, quantization_type="fp4")
