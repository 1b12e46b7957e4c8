"""DoRA: the weight's magnitude and direction are tuned apart (Liu et al. 2024, arXiv 2402.09353, equation 5)."""

from efficientllm.tuning.peft_method import LowRankOptions, PeftMethod, low_rank_config

METHOD = PeftMethod("dora", LowRankOptions, lambda options: low_rank_config(options, use_dora=True))
