"""Products of float16 matrices on a CPU, for quality, which is not timed."""

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn


@contextlib.contextmanager
def half_products_in_float32(model: nn.Module) -> Iterator[None]:
    """Computes a model's float16 linear layers on a CPU in float32 while the block runs, and rounds what they return.

    Weights, inputs and results keep the values of float16; PyTorch's own kernels sum in float32 too, but take five to ten
    times as long on processors without float16 instructions. Other types and devices are left alone.

    Args:
        model: The model that is evaluated.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.float16 and module.weight.device.type == "cpu"
    ]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class' own is found again


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(inputs.float(), layer.weight.float(), bias).half()
