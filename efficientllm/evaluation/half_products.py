"""Products of 16-bit matrices on a CPU, for quality, which is not timed."""

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

_WITHOUT_BFLOAT16 = ("DEFAULT", "AVX2")
"""Processors for which PyTorch's libraries have no products of bfloat16 matrices but a slow fallback."""


@contextlib.contextmanager
def half_products_in_float32(model: nn.Module) -> Iterator[None]:
    """Computes a model's 16-bit linear layers on a CPU in float32 while the block runs, and rounds what they return.

    Weights, inputs and results keep the values of their type; PyTorch's own kernels sum in float32 too, but take five to ten
    times as long on processors without instructions for it: float16 on most, bfloat16 without AVX-512, which 4-bit
    weights compute in too. Other types and devices, and processors that have the instructions, are left alone.

    Args:
        model: The model that is evaluated.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _computes_slowly(module)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class' own is found again


def _computes_slowly(layer: nn.Linear) -> bool:
    if layer.weight.device.type != "cpu":
        return False
    dtype: torch.dtype | None = layer.weight.dtype
    if (state := getattr(layer.weight, "quant_state", None)) is not None:
        # rearranged weights have a kernel of bitsandbytes' own
        dtype = None if getattr(state, "packing_format_for_cpu", False) else state.dtype
    elif type(layer) is not nn.Linear:
        return False
    without_bfloat16 = torch.backends.cpu.get_cpu_capability() in _WITHOUT_BFLOAT16
    return dtype == torch.float16 or (dtype == torch.bfloat16 and without_bfloat16)


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    weight = layer.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(inputs.float(), weight.float(), bias).to(inputs.dtype)
