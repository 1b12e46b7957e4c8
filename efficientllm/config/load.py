"""Loads and checks the parameters; every fault becomes one line that names the key, the value and the remedy."""

import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from efficientllm import paths, registry
from efficientllm.config.faults import described
from efficientllm.config.schema import Architecture, ArchitectureSettings, Parameters, Profile, Shape
from efficientllm.errors import ParameterError, did_you_mean, first_line, shown, unknown_name

ComponentKind = Literal["block", "mixer", "position", "feedforward"]
"""A component's place in a decoder."""

_Model = TypeVar("_Model", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True)
class Configuration:
    """All parameters of a run, loaded and checked."""

    parameters: Parameters
    profile: Profile

    def architecture(self, name: str) -> tuple[Architecture, ArchitectureSettings, Shape]:
        """Returns a pretraining run's components, its settings, and the dense shape of its size.

        Raises:
            ParameterError: No pretraining run has this name.
        """
        if name not in self.parameters.architectures:
            raise unknown_name("architecture", name, self.parameters.architectures)
        choice = self.parameters.architectures[name]
        return choice, self.profile.architectures[name], self.profile.models[choice.size]

    def require_cell(self, axis: registry.Axis, cell: str) -> None:
        """Makes sure that a cell is one of this run's.

        Raises:
            ParameterError: It is not; the message lists those of the axis.
        """
        known = {row.cell for row in self.rows() if row.axis == axis}
        if cell not in known:
            raise unknown_name(f"{axis} cell", cell, known)

    def rows(self) -> list[registry.Row]:
        """Lists the rows of the ranking table that this run measures."""
        chosen = self.parameters
        return registry.rows(chosen.architectures, chosen.methods, chosen.precisions, chosen.sizes)

    def replicas(self) -> list[tuple[registry.TrainedAxis, str, int]]:
        """Lists the replicas that this run asks for: axis, cell and seed of each."""
        chosen = self.parameters.replicas
        cells: list[tuple[registry.TrainedAxis, str]] = [("pretrain", name) for name in chosen.architectures]
        cells += [("tune", registry.cell_name(method, size)) for method in chosen.methods for size in chosen.sizes]
        return [(axis, cell, seed) for axis, cell in cells for seed in chosen.seeds]


def components(kind: ComponentKind) -> list[str]:
    """Lists the components of a kind, without importing them."""
    return component_names(f"components/{kind}s")


def component_names(package: str) -> list[str]:
    """Lists the modules of a folder of interchangeable components, without importing them.

    Args:
        package: Path below `efficientllm`, for example `components/mixers`.
    """
    folder = Path(__file__).parent.parent / package
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def read_yaml(path: Path) -> Any:
    """Reads a YAML 1.2 file, as DVC does.

    Raises:
        ParameterError: The file is missing, is not UTF-8, or is not YAML.
    """
    try:
        # pure: the C parser, which DVC takes for its lock file, says less about what is wrong
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        for text in _texts(content):
            if _CONTROL.search(text):
                raise ParameterError(f"{path} holds the text {shown(text)}: remove the control character")
    except FileNotFoundError as error:
        raise ParameterError(f"{path} does not exist: restore it, for example by `git checkout {path}`") from error
    except UnicodeDecodeError as error:
        raise ParameterError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02X} at {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise ParameterError(f"{path} cannot be read ({error.strerror}): make it a readable file") from error
    except RecursionError as error:
        raise ParameterError(f"{path} is nested too deeply, or refers to itself: write it out") from error
    except YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise ParameterError(f"{path}{where}: not valid YAML ({first_line(error)}): correct it there") from error
    return content


def _texts(content: Any) -> Iterator[str]:
    """Every text and key of a YAML file's content."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def load(root: Path = Path()) -> Configuration:
    """Loads params.yaml and the profile that it names.

    Args:
        root: The repository's root.

    Raises:
        ParameterError: Something is unknown, missing, of the wrong type or contradictory; the message names the key.
    """
    source = root / paths.PARAMETERS
    parameters = _validated(Parameters, read_yaml(source), paths.PARAMETERS)
    known = sorted(path.stem for path in (root / paths.PROFILES).glob("*.yaml"))
    if parameters.profile not in known:
        raise unknown_name("profile", parameters.profile, known)
    profile_path = paths.PROFILES / f"{parameters.profile}.yaml"
    profile = _validated(Profile, read_yaml(root / profile_path), profile_path)
    _check_names(parameters, profile, profile_path)
    _check_training(profile, profile_path)
    _check_data(profile, profile_path)
    return Configuration(parameters, profile)


def _validated(model: type[_Model], content: Any, source: Path) -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ParameterError(described(model, error, f" in {source}")) from None


def _check_names(parameters: Parameters, profile: Profile, profile_path: Path) -> None:
    """Checks every name against what exists, before any name reaches a path or a command."""
    for kind, chosen, known in (
        ("tuning method", parameters.methods, registry.method_keys()),
        ("precision", parameters.precisions, registry.precision_keys()),
        ("size", parameters.sizes, list(registry.SIZES)),
        ("tuning method", [parameters.method], registry.method_keys()),
    ):
        for name in chosen:
            if name not in known:
                raise unknown_name(kind, name, known)
        if len(set(chosen)) != len(chosen):
            raise ParameterError(f"a {kind} is listed twice in {paths.PARAMETERS}: {', '.join(chosen)}")
    if parameters.method not in parameters.methods:
        raise ParameterError(
            f"method is {parameters.method!r}, which is not among the methods that are tuned "
            f"({', '.join(parameters.methods)}): add it to `methods` in {paths.PARAMETERS}"
        )
    _check_bases(parameters)
    _check_replicas(parameters)
    _check_architectures(parameters, profile, profile_path)
    for kind, chosen, block, known_blocks in (
        ("tuning method", parameters.methods, "tune.methods", profile.tune.methods),
        ("precision", parameters.precisions, "quantize", profile.quantize),
    ):
        for name in chosen:
            if name not in known_blocks:
                raise ParameterError(
                    f"missing parameter '{block}.{name}' in {profile_path}: add this {kind}'s settings"
                )


def _check_bases(parameters: Parameters) -> None:
    """Checks that each size has a base, and that a base that a pretraining run makes is among the runs."""
    for size in parameters.bases:
        if size not in registry.SIZES:
            raise unknown_name("size", size, registry.SIZES, " in `bases`")
    for size in parameters.sizes:
        if size not in parameters.bases:
            raise ParameterError(
                f"missing parameter 'bases.{size}' in {paths.PARAMETERS}: what the size is tuned from, a pretraining run's folder "
                f"such as {paths.artifact('pretrain', f'dense_{size}')}, or a checkpoint"
            )
    for size, source in parameters.bases.items():
        run = Path(source)
        if run.parent == paths.PRETRAIN and run.name not in parameters.architectures:
            raise ParameterError(
                f"size {size!r} is tuned from the pretraining run {run.name!r}, which `architectures` in "
                f"{paths.PARAMETERS} leaves out: add it, or change bases.{size}"
            )


def _check_replicas(parameters: Parameters) -> None:
    """Checks that only cells of the run are replicated, and from other seeds than the run's."""
    replicas = parameters.replicas
    for block, everything in (
        ("architectures", [row.cell for row in registry.ARCHITECTURE_ROWS]),
        ("methods", registry.method_keys()),
        ("sizes", registry.SIZES),
    ):
        for name in getattr(replicas, block):
            if name not in everything:
                raise unknown_name("name", name, set(everything), f" in replicas.{block}")
    if not replicas.seeds:
        return
    if parameters.seed in replicas.seeds or len(set(replicas.seeds)) != len(replicas.seeds):
        raise ParameterError(
            f"replicas.seeds is {replicas.seeds}: each is named once, and none is the run's own seed, {parameters.seed}"
        )
    for block in ("architectures", "methods", "sizes"):
        for name in getattr(replicas, block):
            if name not in getattr(parameters, block):
                raise ParameterError(
                    f"replicas.{block} names {name!r}, which `{block}` in {paths.PARAMETERS} leaves out (it has "
                    f"{', '.join(getattr(parameters, block))}): take it out of replicas.{block}, or add it to `{block}`"
                )


def _check_architectures(parameters: Parameters, profile: Profile, profile_path: Path) -> None:
    served = {row.cell for row in registry.ARCHITECTURE_ROWS}
    for name, choice in parameters.architectures.items():
        if not _NAME.fullmatch(name):
            raise ParameterError(f"architecture name {name!r} may hold letters, digits and underscores only")
        if name not in served:
            raise ParameterError(
                f"architecture {name!r} serves no row of the ranking; {did_you_mean(name, served)}"
                f"known: {', '.join(sorted(served))}; a new one needs a Row in efficientllm/registry.py"
            )
        place = f" of architecture {name}"
        for kind in get_args(ComponentKind):
            if getattr(choice, kind) not in (known := components(kind)):
                raise unknown_name(kind, getattr(choice, kind), known, place)
        if choice.size not in profile.models:
            raise unknown_name("size", choice.size, profile.models, place)
        if name not in profile.architectures:
            raise ParameterError(
                f"missing parameter 'architectures.{name}' in {profile_path}: add the run's learning rate"
            )


def _check_training(profile: Profile, profile_path: Path) -> None:
    for stage, training in (("pretrain", profile.pretrain.training), ("tune", profile.tune.training)):
        if training.warmup_steps > training.steps:
            raise ParameterError(
                f"{stage}.training.warmup_steps in {profile_path} is {training.warmup_steps}, more than its {training.steps} steps: "
                "no step would have the full learning rate: lower it, or raise steps"
            )


def _check_data(profile: Profile, profile_path: Path) -> None:
    data = profile.data
    if data.source == "files" and data.files is None:
        raise ParameterError(
            f"data.source is 'files', but {profile_path} has no block data.files (paths, text_field, licence)"
        )
    if data.source == "huggingface" and data.huggingface is None:
        raise ParameterError(f"data.source is 'huggingface', but {profile_path} has no block data.huggingface")
    if (data.tokenizer.train_vocabulary_size is None) == (data.tokenizer.path is None):
        raise ParameterError(
            f"data.tokenizer in {profile_path}: set exactly one of train_vocabulary_size and path, the other to null"
        )
    if (data.task.source == "file") != (data.task.path is not None):
        raise ParameterError(f"data.task in {profile_path}: `path` belongs to source 'file', and only to it")
