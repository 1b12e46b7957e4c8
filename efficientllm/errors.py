"""Errors whose message is written for the person at the keyboard: one line that names the fault and the remedy."""

import difflib
from collections.abc import Iterable

_LONGEST_SHOWN = 80


class EfficientLLMError(Exception):
    """Base of every error that is the user's to mend; shown as one line, without a traceback."""


class ParameterError(EfficientLLMError):
    """A parameter is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(EfficientLLMError):
    """A dataset, text file or task file cannot be used."""


class ArtifactError(EfficientLLMError):
    """A file that an earlier stage wrote is missing, truncated or inconsistent."""


class MeasurementError(EfficientLLMError):
    """A measurement would be wrong: a shared device, a dead sensor, zero joules."""


class CellFailure(EfficientLLMError):  # noqa: N818 - a result of the benchmark, not a defect of the program
    """A cell cannot run on this hardware (out of memory, unsupported type or kernel).

    It is a result: the stage records the reason and exits with success, so that the other cells go on and the
    report shows the gap.
    """


class Terminated(BaseException):
    """SIGTERM, or the end of the terminal, has asked this process to end; like Ctrl-C no error, and no result of a cell.

    The message says what has been kept; empty where there was nothing to keep.
    """


def did_you_mean(found: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns "did you mean 'dora'? " for the nearest of the known names, or nothing where none is near.

    Args:
        found: The name as given.
        known: All names that would be accepted.
        cutoff: How near a name has to be, between 0 and 1 (the same).
    """
    near = difflib.get_close_matches(str(found), list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}? " if near else ""


def shown(value: object) -> str:
    """Returns a value as it stands in a message: on one line, and cut where it is long."""
    return abridged(repr(value))


def abridged(text: str) -> str:
    """Returns a text as it stands in a message: cut where it is long."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."


def first_line(error: BaseException) -> str:
    """Returns the first line of what another library's error says, or its kind where it says nothing.

    Of a YAML error that is its `problem`, without where in its own text the parser has met it.
    """
    said = str(getattr(error, "problem", None) or error)
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def unknown_name(kind: str, found: str, known: Iterable[str], place: str = "") -> ParameterError:
    """Builds the error for a name outside its list.

    Args:
        kind: What the name stands for, for example "tuning method".
        found: The name as given.
        known: All names that would be accepted.
        place: Where it stands, as it follows the name, for example " in params.yaml".

    Returns:
        An error such as "unknown tuning method 'dorra'; did you mean 'dora'? known: dora, lora".
    """
    names = sorted(known)
    return ParameterError(
        f"unknown {kind} {shown(found)}{place}; {did_you_mean(found, names)}known: {', '.join(names) or 'none'}"
    )
