"""DoRA: the weight's magnitude and direction are tuned apart (Liu et al. 2024, arXiv 2402.09353, equation 5).

PEFT's layer materialises W + s B A at every step, through a product with an identity matrix as wide as the layer's input,
only to take the norm of its rows; and under dropout it multiplies by the frozen W a second time. Here the norm is expanded,

    |W + s B A|^2 = |W|^2 + 2 s <B, W A^T> + s^2 <B A A^T, B>    (row by row)

whose first term never changes and whose others have the adapter's rank; and dropout acts on the adapter's input alone, as it
does in every other method of the family, so that the product with W serves both. Parameters, adapter file and merging are PEFT's.
"""

import functools
from pathlib import Path
from typing import Any

import torch

from efficientllm.tuning.method import TunableModel
from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config

_ADAPTER = "default"


class DoRA(PeftMethod):
    """Weight-decomposed low-rank adaptation."""

    def prepare(
        self, base: Path, options: Any, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> TunableModel:
        """Injects the adapters; magnitudes are those of the base's rows, in float32 whatever the base's type is."""
        from peft.tuners.lora.layer import Linear

        model = super().prepare(base, options, device=device, dtype=dtype)
        for layer in model.module.modules():
            if isinstance(layer, Linear):
                magnitude = layer.lora_magnitude_vector[_ADAPTER]
                square_norm_o = layer.get_base_layer().weight.detach().float().square().sum(dim=1)
                magnitude.register_buffer("base_square_norm", square_norm_o, persistent=False)
                with torch.no_grad():
                    magnitude.weight.copy_(square_norm_o.sqrt())
                layer.lora_variant[_ADAPTER] = _variant()
        return model


@functools.cache
def _variant() -> Any:
    """PEFT's variant of a LoRA layer with another forward pass; one object, so that all blocks share a compiled program."""
    from peft.tuners.lora.variants import DoraLinearVariant

    class ExpandedNorm(DoraLinearVariant):
        """DoRA without the materialised weight."""

        @staticmethod
        def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any) -> Any:
            del kwargs
            magnitude, base = module.lora_magnitude_vector[active_adapter], module.get_base_layer()
            down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
            scaling = module.scaling[active_adapter]
            # a constant to the gradient, as in section 4.3 of the paper
            norm_o = _norm(base.weight, magnitude.base_square_norm, down.weight, up.weight, scaling)
            scale_o = magnitude.weight / norm_o
            unbiased = result if base.bias is None else result - base.bias
            update = up(down(module.lora_dropout[active_adapter](x))) * scaling
            return result + (scale_o - 1) * unbiased + scale_o * update

    return ExpandedNorm()


@torch.no_grad()
def _norm(
    weight_oi: torch.Tensor, square_norm_o: torch.Tensor, down_ri: torch.Tensor, up_or: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Norm of the rows of `weight_oi + scaling * up_or @ down_ri`, without making that matrix."""
    with torch.autocast(weight_oi.device.type, enabled=False):
        across_or = (weight_oi @ down_ri.to(weight_oi.dtype).T).float()
        within_or = up_or.float() @ (down_ri @ down_ri.T).float()
        square_o = square_norm_o + (scaling * up_or.float() * (2 * across_or + scaling * within_or)).sum(dim=1)
    # rounding may bring the square of a row that the update cancels below zero
    return square_o.clamp_min(torch.finfo(torch.float32).tiny).sqrt()


METHOD = DoRA("dora", LowRankOptions, lambda options: low_rank_config(options, use_dora=True))
