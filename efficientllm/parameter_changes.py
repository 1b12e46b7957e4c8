"""Notices parameters that are edited while a stage runs.

DVC writes a stage's parameters into its lock file when the stage has ended, as they are then. Without this check an output
that was made with the values of before would count as made with those of after, here and wherever the cache of runs is shared.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.errors import ParameterError, shown

Contents = dict[str, bytes]
_TEMPLATE = re.compile(r"\$\{([\w.]+)\}")


def parameter_files(root: Path = Path()) -> Contents:
    """Reads params.yaml and all profiles, byte for byte."""
    files = [root / paths.PARAMETERS, *sorted((root / paths.PROFILES).glob("*.yaml"))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def require_unchanged(before: Contents, root: Path = Path()) -> None:
    """Makes sure that no parameter of the running stage has changed.

    Args:
        before: What `parameter_files` read when the stage began.
        root: The repository's root.

    Raises:
        ParameterError: A parameter that dvc.yaml declares for the stage of the environment's `DVC_STAGE` has another value.
    """
    now = parameter_files(root)
    if now == before or "DVC_STAGE" not in os.environ:
        return
    file, _, name = os.environ["DVC_STAGE"].rpartition(":")
    old, new = (_contents(files) for files in (before, now))
    for source, key in _declared(root / (file or "dvc.yaml"), name, old[paths.PARAMETERS.as_posix()]):
        one, other = (value_of(contents.get(source), key) for contents in (old, new))
        if one != other:
            raise ParameterError(
                f"{source}: {key} was changed from {shown(one)} to {shown(other)} while {name} ran: run the same command again"
            )


def _contents(files: Contents) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return {name: YAML(typ="safe", pure=True).load(content) for name, content in files.items()}


def _declared(file: Path, name: str, parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """File and dotted key of each parameter of a stage, its templates filled in."""
    from efficientllm.config.load import read_yaml

    family, _, cell = name.partition("@")
    stage = read_yaml(file)["stages"][family]
    item: Any = None
    if "matrix" in stage:
        item = dict(zip(stage["matrix"], cell.split("-"), strict=True))
    elif "foreach" in stage:
        item = value_of(parameters, f"{_TEMPLATE.findall(stage['foreach'])[0]}.{cell}")
    context = {**parameters, "item": item, "key": cell}
    for entry in stage.get("do", stage).get("params", []):
        for source, keys in entry.items() if isinstance(entry, dict) else [(paths.PARAMETERS.as_posix(), [entry])]:
            for key in keys:
                yield _filled(source, context), _filled(key, context)


def _filled(text: str, context: dict[str, Any]) -> str:
    return _TEMPLATE.sub(lambda found: str(value_of(context, found[1])), text)


def value_of(content: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None where it is absent."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
