"""OFT: each weight is rotated by a block-diagonal orthogonal matrix (Qiu et al. 2023, arXiv 2306.07280)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.errors import CellFailure
from efficientllm.tuning.peft_method import PeftMethod

if TYPE_CHECKING:
    from peft import PeftConfig


class OFTOptions(Section):
    """Size of the rotations."""

    block_size: int = Field(ge=2, description="inputs that are rotated together; divides every layer's width")
    dropout: float = Field(ge=0, lt=1)


class OFT(PeftMethod):
    """Rotations in blocks of the inputs."""

    def _check_layers(self, layers: Mapping[str, nn.Linear], options: Any) -> None:
        for name, layer in layers.items():
            if layer.in_features % options.block_size:  # PEFT would take another size
                raise CellFailure(
                    f"tune.methods.oft.block_size is {options.block_size}, which does not divide the {layer.in_features} "
                    f"inputs of {name} of the base: set it to a divisor of all layers' widths"
                )


def _config(options: OFTOptions) -> "PeftConfig":
    from peft import OFTConfig

    return OFTConfig(
        r=0,
        oft_block_size=options.block_size,
        module_dropout=options.dropout,
        target_modules="all-linear",
        bias="none",
        use_cayley_neumann=True,
        task_type="CAUSAL_LM",
    )


METHOD = OFT("oft", OFTOptions, _config)
