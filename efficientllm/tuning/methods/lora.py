"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, equation 3)."""

from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config

METHOD = PeftMethod("lora", LowRankOptions, low_rank_config)
