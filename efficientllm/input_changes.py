"""Notices inputs of a stage that are edited while it runs: its parameters, and the code that it depends on.

DVC writes a stage's parameters and the hashes of its code into the lock file when the stage has ended, as they are then. Without
this check an output that was made with those of before would count as made with those of after, here and wherever the cache of
runs is shared.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.errors import ArtifactError, shown

_TEMPLATE = re.compile(r"\$\{([\w.]+)\}")
_CODE = (Path("efficientllm"), Path("stages"))


@dataclass(frozen=True)
class Inputs:
    """What stages read of the repository.

    Args:
        parameters: Content of params.yaml and of every profile.
        code: Hash of every Python file.
    """

    parameters: dict[str, bytes]
    code: dict[str, bytes]


def read_inputs(root: Path = Path()) -> Inputs:
    """Reads what stages read of the repository, in some 20 ms."""
    files = [root / paths.PARAMETERS, *sorted((root / paths.PROFILES).glob("*.yaml"))]
    code = (file for folder in _CODE for file in (root / folder).rglob("*.py"))
    return Inputs(
        {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()},
        {path.relative_to(root).as_posix(): hashlib.blake2b(path.read_bytes()).digest() for path in code},
    )


def require_unchanged(before: Inputs, root: Path = Path()) -> None:
    """Makes sure that nothing has changed which dvc.yaml declares for the stage of the environment's `DVC_STAGE`.

    Args:
        before: What `read_inputs` gave when the stage began.
        root: The repository's root.

    Raises:
        ArtifactError: A parameter has another value, or a file of code another content.
    """
    address = os.environ.get("DVC_STAGE")
    if address is None or (now := read_inputs(root)) == before:
        return
    definition, _, name = address.rpartition(":")
    old, new = (_loaded(inputs.parameters) for inputs in (before, now))
    stage = _Stage(root / (definition or "dvc.yaml"), name, old[paths.PARAMETERS.as_posix()])
    remedy = f"run the same command again, or `dvc commit -f {address}` where that makes no difference"
    for file, key in stage.parameters():
        one, other = (value_of(contents.get(file), key) for contents in (old, new))
        if one != other:
            raise ArtifactError(
                f"{file}: {key} was changed from {shown(one)} to {shown(other)} while {name} ran: {remedy}"
            )
    changed = {file for file in before.code.keys() | now.code.keys() if before.code.get(file) != now.code.get(file)}
    for file in sorted(changed):
        if any(Path(file).is_relative_to(needed) for needed in stage.needs()):
            raise ArtifactError(f"{file} was changed while {name} ran: {remedy}")


class _Stage:
    """A stage of a dvc.yaml, its templates filled in."""

    def __init__(self, definition: Path, name: str, parameters: dict[str, Any]) -> None:
        from efficientllm.config.load import read_yaml

        family, _, cell = name.partition("@")
        stage = read_yaml(definition)["stages"][family]
        item: Any = None
        if "matrix" in stage:
            item = dict(zip(stage["matrix"], cell.split("-"), strict=True))
        elif "foreach" in stage:
            item = value_of(parameters, f"{_TEMPLATE.findall(stage['foreach'])[0]}.{cell}")
        self._content = stage.get("do", stage)
        self._context = {**parameters, "item": item, "key": cell}

    def parameters(self) -> Iterator[tuple[str, str]]:
        """File and dotted key of each parameter."""
        for entry in self._content.get("params", []):
            files = entry if isinstance(entry, dict) else {paths.PARAMETERS.as_posix(): [entry]}
            for file, keys in files.items():
                for key in keys:
                    yield self._filled(file), self._filled(key)

    def needs(self) -> list[str]:
        """Files and folders that it depends on."""
        return [self._filled(path) for path in self._content.get("deps", [])]

    def _filled(self, text: str) -> str:
        return _TEMPLATE.sub(lambda found: str(value_of(self._context, found[1])), text)


def _loaded(files: dict[str, bytes]) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return {name: YAML(typ="safe", pure=True).load(content) for name, content in files.items()}


def value_of(content: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None where it is absent."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
