"""From raw text to packed tokens and instruction examples: sources, splits, tokenizer, packing, tasks, baselines."""
