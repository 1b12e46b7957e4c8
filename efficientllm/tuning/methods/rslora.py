"""Rank-stabilized LoRA: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2)."""

from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config

METHOD = PeftMethod("rslora", LowRankOptions, lambda options: low_rank_config(options, use_rslora=True))
