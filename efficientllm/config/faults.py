"""One line for the first fault that pydantic finds in a block of parameters, or in a file that a program wrote."""

import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from efficientllm.errors import did_you_mean, shown


def described(model: type[BaseModel], error: ValidationError, place: str = "", prefix: str = "") -> str:
    """Turns pydantic's first complaint into one line that names the parameter, what it is, and what it may be.

    Args:
        model: Class of the block.
        error: What pydantic found.
        place: Where the block was read, as it follows the parameter's name, for example " in params.yaml".
        prefix: Where the block stands, for example `tune.methods.lora`.
    """
    faults = error.errors()
    fault = faults[0]
    location = _fields(model, fault["loc"])
    key = ".".join(filter(None, (prefix, *location)))
    if fault["type"] == "extra_forbidden":
        parent = key.rpartition(".")[0]
        siblings = _fields_at(model, location[:-1])
        near = did_you_mean(location[-1], siblings)
        if parent:
            near = near.replace("did you mean '", f"did you mean '{parent}.")
        return f"unknown parameter {shown(key)}{place}; {near}known: {', '.join(siblings) or 'none'}"
    if fault["type"] == "missing":
        return f"missing parameter {key!r}{place}: add it{_meaning(model, location)}"
    if not location and fault["type"] == "value_error":  # what a block says of its parameters together
        return f"{prefix or place.removeprefix(' in ')}: {_plain(fault['msg'])}"
    if not location:
        found = "empty" if fault["input"] is None else shown(fault["input"])
        return f"{prefix or place.removeprefix(' in ')} is {found}: a mapping of parameters is needed"
    # of a choice between types, every one has its complaint
    alternatives = [other["msg"] for other in faults if _fields(model, other["loc"]) == location]
    message = " or ".join(_plain(text) for text in dict.fromkeys(alternatives))
    return f"parameter {shown(key)}{place} is {shown(fault['input'])}: {message}"


def first_fault(error: ValidationError) -> str:
    """Returns pydantic's first complaint about a file that is no block of parameters: where in it, and what.

    Args:
        error: What pydantic found.
    """
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    if not place and fault["type"] == "model_type":
        return "it is no mapping"
    return f"{shown(place)}: {_plain(fault['msg'])}" if place else _plain(fault["msg"])


def _plain(message: str) -> str:
    """Pydantic's message without its way of saying where it comes from."""
    text = re.sub(r"^Value error, | after validation, not \d+$| or instance of \w+$", "", message)
    return text[0].lower() + text[1:]


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The names of a fault's location, without what pydantic adds for its own kinds of types."""
    found: list[str] = []
    current: Any = model
    for part in location:
        block = _block(current)
        if block is not None:
            found.append(str(part))
            field = block.model_fields.get(str(part))
            if field is None:
                return found
            current = field.annotation
        elif get_origin(current) in (dict, list) and part != "[key]":
            found.append(str(part))
            current = get_args(current)[-1]
    return found


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the block at a location, through optional blocks and mappings of blocks."""
    block = _block(_annotation(model, location))
    return sorted(block.model_fields) if block is not None else []


def _annotation(model: type[BaseModel], location: list[str]) -> Any:
    current: Any = model
    for part in location:
        block = _block(current)
        current = block.model_fields[part].annotation if block is not None else get_args(current)[-1]
    return current


def _meaning(model: type[BaseModel], location: list[str]) -> str:
    """What a field is for, where its description says so."""
    block = _block(_annotation(model, location[:-1]))
    description = None if block is None else block.model_fields[location[-1]].description
    return f" ({description})" if description else ""


def _block(annotation: Any) -> type[BaseModel] | None:
    """Returns the class of a block, also of an optional one; None for anything else, a mapping of blocks included."""
    candidates = [annotation] if isinstance(annotation, type) else get_args(annotation)
    if get_origin(annotation) in (dict, list):
        return None
    return next((entry for entry in candidates if isinstance(entry, type) and issubclass(entry, BaseModel)), None)
