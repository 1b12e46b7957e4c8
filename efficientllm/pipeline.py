"""Where the pipeline's stages are: each axis has a dvc.yaml of its own, with DVC's lock file beside it.

A stage is called by its name alone here, such as `tune@lora-small`, of which there is one in all of the files.
"""

import io
from pathlib import Path
from typing import Any

from efficientllm.files import write_text

_FOLDERS = {
    "pretrain": Path("stages/pretraining"),
    "base": Path("stages/tuning"),
    "tune": Path("stages/tuning"),
    "quantize": Path("stages/quantization"),
}
_PREFIXES = ("measure_", "replicate_")
_DEFINITION = "dvc.yaml"
_LOCK = "dvc.lock"

LOCKS = tuple(folder / _LOCK for folder in dict.fromkeys((Path(), *_FOLDERS.values())))
"""DVC's lock files, relative to the repository's root: the root's own first, which knows the report."""


def lock(stage: str) -> Path:
    """The lock file that has a stage's entry, relative to the repository's root."""
    return _folder(stage) / _LOCK


def address(stage: str) -> str:
    """What DVC calls a stage in the repository's root, for example `stages/tuning/dvc.yaml:tune@lora-small`."""
    place = _folder(stage)
    return stage if place == Path() else f"{(place / _DEFINITION).as_posix()}:{stage}"


def name(address: str) -> str:
    """The stage's name in an address."""
    return address.rpartition(":")[2]


def read_lock(path: Path) -> dict[str, Any]:
    """What a lock file knows of its stages, by name; nothing where there is no file, or no stage in it.

    Raises:
        ParameterError: It is not YAML.
    """
    from efficientllm.config.load import read_yaml

    return dict((read_yaml(path) or {}).get("stages") or {}) if path.exists() else {}


def write_lock(path: Path, stages: dict[str, Any]) -> None:
    """Writes a lock file as DVC does."""
    from ruamel.yaml import YAML

    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump({"schema": "2.0", "stages": stages}, text)
    write_text(path, text.getvalue())


def _folder(stage: str) -> Path:
    """The folder of the dvc.yaml of a stage, or of a group of stages such as `measure_tune`."""
    family = stage.partition("@")[0]
    for prefix in _PREFIXES:
        family = family.removeprefix(prefix)
    return _FOLDERS.get(family, Path())
