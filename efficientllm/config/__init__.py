"""Typed parameters: `params.yaml` says what runs, `profiles/<profile>.yaml` says at which scale."""

from efficientllm.config.load import Configuration, load

__all__ = ["Configuration", "load"]
