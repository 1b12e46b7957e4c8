"""OFT: each weight is rotated by a block-diagonal orthogonal matrix (Qiu et al. 2023, arXiv 2306.07280)."""

from typing import TYPE_CHECKING

from pydantic import Field

from efficientllm.config.schema import Section
from efficientllm.tuning.peft_method import PeftMethod

if TYPE_CHECKING:
    from peft import PeftConfig


class OFTOptions(Section):
    """Size of the rotations."""

    block_size: int = Field(ge=2, description="inputs that are rotated together; divides every layer's width")
    dropout: float = Field(ge=0, lt=1)


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


METHOD = PeftMethod("oft", OFTOptions, _config)
