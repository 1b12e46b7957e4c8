"""The decoders of the model tests serve here too."""

from tests.models.conftest import make_config

__all__ = ["make_config"]
