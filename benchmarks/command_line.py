"""What the benchmarks' command lines share: how values are read, and the options that several of them have."""

import argparse
import math
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from efficientllm.errors import ParameterError, did_you_mean

_Value = TypeVar("_Value")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines, and adds its default to the help of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser without options, whose help says each option's default."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter)


def whole(least: int = 1) -> Callable[[str], int]:
    """Type of an option that takes a whole number of at least `least`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d+", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return read


def positive(text: str) -> float:
    """Type of an option that takes a number above zero."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def not_negative(text: str) -> float:
    """Type of an option that takes a number of at least zero."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """Type of an option that takes one of some names."""
    names = list(known)

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(_unknown(text, names))
        return text

    return read


def require_known(parser: argparse.ArgumentParser, option: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Ends the program with one line where an option's names are not all among those that only params.yaml tells."""
    names = list(known)
    for name in found:
        if name not in names:
            parser.error(f"argument {option}: {_unknown(name, names)}")


def _unknown(found: str, known: list[str]) -> str:
    return f"unknown name {found!r}; {did_you_mean(found, known)}known: {', '.join(known)}"


def like(pattern: str, form: str) -> Callable[[str], str]:
    """Type of an option that takes a text which matches a pattern, and which a message describes by `form`."""

    def read(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return text

    return read


def several(read: Callable[[str], _Value]) -> Callable[[str], list[_Value]]:
    """Type of an option that takes several values, joined by commas."""
    return lambda text: [read(part) for part in text.split(",")]


def add_names(
    parser: argparse.ArgumentParser, option: str, what: str, known: Collection[str], default: str | None = None
) -> None:
    """Adds an option that takes several of some names; its help lists them.

    Args:
        parser: Gets the option.
        option: With its dashes.
        what: What the names are of.
        known: The names.
        default: Those that are taken without the option; None where the program chooses.
    """
    parser.add_argument(option, type=several(one_of(known)), default=default, help=f"{what}, of {', '.join(known)}")


def add_out(parser: argparse.ArgumentParser, *, resumes: bool = False) -> None:
    """Adds --out.

    Args:
        parser: Gets the option.
        resumes: Whether rows that the file has already are kept, and not measured again.
    """
    kept = "the rows that it has are kept, and not measured again" if resumes else "what is there is replaced"
    parser.add_argument("--out", type=Path, metavar="CSV", help=f"file to which the table is also written; {kept}")


def add_profile(parser: argparse.ArgumentParser, default: str, block: str) -> None:
    """Adds --profile, of which `profile_block` reads a block."""
    parser.add_argument(
        "--profile",
        type=Path,
        default=default,
        metavar="YAML",
        help=f"profile whose block `{block}` holds the parameters",
    )


def profile_block(parser: argparse.ArgumentParser, profile: Path, block: str) -> Any:
    """Reads a block of the profile that --profile names; a fault ends the program with one line."""
    from efficientllm.config.load import read_yaml

    try:
        content = read_yaml(profile)
    except ParameterError as error:
        parser.error(f"argument --profile: {error}")
    if not isinstance(content, dict) or block not in content:
        parser.error(f"argument --profile: {profile} has no block `{block}`: name a profile, such as profiles/gpu.yaml")
    return content[block]


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Adds --traceback."""
    parser.add_argument("--traceback", action="store_true", help="stop at the first row that fails, with its traceback")


def add_recompute(parser: argparse.ArgumentParser) -> None:
    """Adds --recompute."""
    parser.add_argument(
        "--recompute", action="store_true", help="recompute activations in the backward pass, in every row"
    )


def add_model_and_batch(
    parser: argparse.ArgumentParser, shapes: Collection[str], *, shape: str, sequence: int, batch: int
) -> None:
    """Adds --shape, --sequence and --batch with their defaults: what is trained on in a step."""
    parser.add_argument("--shape", choices=list(shapes), default=shape, help="vocabulary and sizes of the models")
    parser.add_argument("--sequence", type=whole(), default=sequence, help="tokens of a sequence")
    parser.add_argument(
        "--batch", type=whole(), default=batch, help="sequences that each process takes in a timed step"
    )


def add_timed_steps(parser: argparse.ArgumentParser, *, warmup: int, steps: int) -> None:
    """Adds --warmup and --steps with their defaults, and what changes a step: --layers, --optimizer and --recompute."""
    parser.add_argument("--warmup", type=whole(0), default=warmup, help="untimed steps before the timed ones")
    parser.add_argument("--steps", type=whole(), default=steps, help="timed steps")
    parser.add_argument("--layers", type=whole(), help="number of layers; default: the shape's")
    parser.add_argument(
        "--optimizer", choices=["adamw", "adamw_8bit"], default="adamw", help="optimizer of this project's rows"
    )
    add_recompute(parser)


def add_requests(parser: argparse.ArgumentParser, *, batches: str) -> None:
    """Adds --batches with its default, --prompt and --output: what is served."""
    parser.add_argument("--batches", type=several(whole()), default=batches, help="numbers of requests served at once")
    parser.add_argument("--prompt", type=whole(), default=512, help="tokens of a prompt")
    parser.add_argument("--output", type=whole(2), default=128, help="tokens generated for each prompt")
