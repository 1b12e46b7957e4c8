"""Parameters that belong to one technique are checked by the technique's own module."""

from typing import Any, TypeVar

from pydantic import ValidationError

from efficientllm.config.faults import described
from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError, shown

_TOO_LARGE = 2**31
"""No technique counts so far, and sizes of tensors overflow beyond it."""

_Options = TypeVar("_Options", bound=Section)


class NoOptions(Section):
    """The options of a technique without parameters of its own."""


def checked_options(options: type[_Options], values: dict[str, Any], key: str) -> _Options:
    """Validates a technique's own block of parameters.

    Args:
        options: Class of the block.
        values: The block as it stands in the profile.
        key: Where it stands, for example `tune.methods.lora`.

    Raises:
        ParameterError: A parameter is unknown, missing or out of range; the message names it and what is known.
    """
    for name, value in values.items():
        if isinstance(value, int) and abs(value) >= _TOO_LARGE:
            raise ParameterError(f"parameter '{key}.{name}' is {shown(value)}: input should be less than {_TOO_LARGE}")
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise ParameterError(described(options, error, prefix=key)) from None
