"""LoRA+: the B matrices learn `learning_rate_ratio` times as fast as the A matrices (Hayou et al. 2024, arXiv 2402.12354)."""

from typing import Any

from pydantic import Field

from efficientllm.config.schema import TrainingSettings
from efficientllm.tuning.method import TunableModel
from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config


class LoRAPlusOptions(LowRankOptions):
    """LoRA's parameters and the ratio of the two learning rates."""

    learning_rate_ratio: float = Field(ge=1)


class LoRAPlus(PeftMethod):
    """LoRA whose parameter groups are those of PEFT's LoRA+ optimizer; `learning_rate` is that of the A matrices."""

    def groups(self, model: TunableModel, options: LoRAPlusOptions, training: TrainingSettings) -> list[dict[str, Any]]:
        """Splits the adapters as PEFT does."""
        import torch
        from peft import PeftModel
        from peft.optimizers import create_loraplus_optimizer

        assert isinstance(model.module, PeftModel)
        # at a learning rate of 1, a group's rate is its factor
        optimizer = create_loraplus_optimizer(
            model.module, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=options.learning_rate_ratio,
            loraplus_weight_decay=training.weight_decay,
        )  # fmt: skip
        return [
            {"params": group["params"], "weight_decay": group["weight_decay"], "lr_scale": group["lr"]}
            for group in optimizer.param_groups
            if group["params"]
        ]


METHOD = LoRAPlus("lora_plus", LoRAPlusOptions, low_rank_config)
