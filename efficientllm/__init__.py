"""EfficientLLM: from raw text to a ranked report of efficiency techniques for language models."""

__version__ = "0.1.0"
