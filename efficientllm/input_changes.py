"""Notices inputs of a stage that are edited while it runs: its parameters, and the code that it depends on.

DVC writes a stage's parameters and the hashes of its code into the lock file when the stage has ended, as they are then. Without
this check an output that was made with those of before would count as made with those of after, here and wherever the cache of
runs is shared.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.errors import ArtifactError, shown

Contents = dict[str, bytes]
_TEMPLATE = re.compile(r"\$\{([\w.]+)\}")
_CODE = (Path("efficientllm"), Path("stages"))


def read_inputs(root: Path = Path()) -> Contents:
    """Reads params.yaml, every profile and every Python file of the package and the stages, in some 10 ms."""
    files = [root / paths.PARAMETERS, *(root / paths.PROFILES).glob("*.yaml")]
    files += [file for folder in _CODE for file in (root / folder).rglob("*.py")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def require_unchanged(before: Contents, root: Path = Path()) -> None:
    """Makes sure that nothing has changed which dvc.yaml declares for the stage of the environment's `DVC_STAGE`.

    Args:
        before: What `read_inputs` gave when the stage began.
        root: The repository's root.

    Raises:
        ArtifactError: A parameter has another value, or a file of code another content.
        ParameterError: A changed file of its parameters is no YAML.
    """
    address = os.environ.get("DVC_STAGE")
    if address is None or (now := read_inputs(root)) == before:
        return
    from efficientllm.config.load import read_yaml

    changed = {file for file in before.keys() | now.keys() if before.get(file) != now.get(file)}
    definition, _, name = address.rpartition(":")
    stage = _Stage(root / (definition or "dvc.yaml"), name, _loaded(before[paths.PARAMETERS.as_posix()]))
    remedy = f"run the same command again, or `dvc commit -f {address}` where that makes no difference"
    for file, keys in stage.parameters():
        if file not in changed:
            continue
        old, new = _loaded(before.get(file, b"")), read_yaml(root / file)
        for key in keys:
            one, other = value_of(old, key), value_of(new, key)
            if one != other:
                raise ArtifactError(
                    f"{file}: {key} was changed from {shown(one)} to {shown(other)} while {name} ran: {remedy}"
                )
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

    def parameters(self) -> Iterator[tuple[str, list[str]]]:
        """Files of parameters, and the dotted keys that it reads there."""
        for entry in self._content.get("params", []):
            files = entry if isinstance(entry, dict) else {paths.PARAMETERS.as_posix(): [entry]}
            for file, keys in files.items():
                yield self._filled(file), [self._filled(key) for key in keys]

    def needs(self) -> list[str]:
        """Files and folders that it depends on."""
        return [self._filled(path) for path in self._content.get("deps", [])]

    def _filled(self, text: str) -> str:
        return _TEMPLATE.sub(lambda found: str(value_of(self._context, found[1])), text)


def _loaded(content: bytes) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(content)


def value_of(content: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None where it is absent."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
