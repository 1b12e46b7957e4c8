"""Parameters that belong to one technique are checked by the technique's own module."""

from typing import Any, TypeVar

from pydantic import ValidationError

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError, did_you_mean

_Options = TypeVar("_Options", bound=Section)


def checked_options(options: type[_Options], values: dict[str, Any], key: str) -> _Options:
    """Validates a technique's own block of parameters.

    Args:
        options: Class of the block.
        values: The block as it stands in the profile.
        key: Where it stands, for example `tune.methods.lora`.

    Raises:
        ParameterError: A parameter is unknown, missing or out of range; the message names it and what is known.
    """
    try:
        return options.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        known = sorted(options.model_fields)
        if fault["type"] == "extra_forbidden":
            hint = f"{did_you_mean(name, known)}known: {', '.join(known) or 'none'}"
            raise ParameterError(f"unknown parameter '{key}.{name}'; {hint}") from None
        if fault["type"] == "missing":
            raise ParameterError(f"missing parameter '{key}.{name}'") from None
        message = fault["msg"][0].lower() + fault["msg"][1:]
        raise ParameterError(f"parameter '{key}.{name}' is {fault['input']!r}: {message}") from None
