"""Checks that need the techniques' own code: every cell of the grid can be built from the parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.config.load import Configuration
from efficientllm.config.schema import Profile, Shape
from efficientllm.errors import ParameterError, shown
from efficientllm.files import file_hash


def check_grid(configuration: Configuration) -> None:
    """Builds every architecture without allocating it, and checks what would stop a later stage.

    Raises:
        ParameterError: A component, an option or a shape is unfit; the message names the run.
    """
    from efficientllm.device import select_device
    from efficientllm.distributed.launch import check_shares
    from efficientllm.measurement.carbon import check_country
    from efficientllm.models.build import build_decoder, decoder_config
    from efficientllm.quantization.precision import precision
    from efficientllm.tuning.method import tuning_method

    profile, device = configuration.profile, select_device()
    vocabulary_size = profile.data.tokenizer.train_vocabulary_size or 50_000  # any size shows whether the shape is fit
    for name in configuration.parameters.architectures:
        choice, settings, shape = configuration.architecture(name)
        try:
            decoder = build_decoder(decoder_config(choice, settings, shape, vocabulary_size), device="meta")
            decoder.select_kernel(settings.kernel)
            decoder.kernels(device)
        except ParameterError as error:
            raise ParameterError(f"architecture {name!r}: {error}") from None
        trained = {"pretrain.training.sequence_length": profile.pretrain.training.sequence_length}
        check_lengths(profile, trained, shape.context_length, _allowed(choice.size, shape))
    for method in configuration.parameters.methods:
        tuning_method(method).options(profile.tune.methods[method])
    for key in configuration.parameters.precisions:
        precision(key).options(profile.quantize[key])
    for size, source in configuration.parameters.bases.items():
        if Path(source).parent == paths.PRETRAIN:  # the length of a checkpoint is known once it has been read
            trained = {"tune.training.sequence_length": profile.tune.training.sequence_length}
            shape = profile.models[size]
            check_lengths(profile, trained, shape.context_length, _allowed(size, shape))
        elif not _exists(source):
            raise ParameterError(
                f"bases.{size} in {paths.PARAMETERS} is {shown(source)}, which does not exist: name a folder, a .gguf or a "
                f".yaml file (docs/bases.md){paths.copied_project_hint()}"
            )
    if not profile.random_weights:
        check_shares(profile.parallel, profile.pretrain.training.batch_size, "pretrain.training.batch_size")
        own = profile.tune.training.batch_sizes is not None
        for size in configuration.parameters.sizes:
            parameter = f"tune.training.batch_sizes.{size}" if own else "tune.training.batch_size"
            check_shares(profile.parallel, profile.tune.training.for_size(size).batch_size, parameter)
        for stage, training in (("pretrain", profile.pretrain.training), ("tune", profile.tune.training)):
            if training.optimizer == "adamw_8bit" and device.type != "cuda":
                raise ParameterError(
                    f"{stage}.training.optimizer is 'adamw_8bit', which needs a CUDA GPU: set it to adamw"
                )
    check_country(profile.measure.country_iso_code)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that no file system takes
        return False


def check_lengths(profile: Profile, trained: Mapping[str, int], context_length: int, allowed: str) -> None:
    """Checks that a model's context holds the sequences that it is trained on and those that are served.

    Args:
        profile: The run's scale.
        trained: The training sequences' lengths, by what an error calls them.
        context_length: Longest sequence of the model.
        allowed: What an error says of that length, and the remedy.

    Raises:
        ParameterError: A sequence is longer.
    """
    served = profile.measure.serving_prompt_length + profile.measure.serving_output_length
    for name, length in {**trained, "measure.serving_prompt_length + serving_output_length": served}.items():
        if length > context_length:
            raise ParameterError(f"{name} is {length}, more than {allowed}")


def _allowed(size: str, shape: Shape) -> str:
    return f"models.{size}.context_length, which is {shape.context_length}: lower it, or raise the context"


def data_fingerprint(configuration: Configuration) -> dict[str, Any]:
    """Hashes of the files that the profile names outside the repository's own, which DVC cannot see.

    Raises:
        ParameterError: A named file does not exist or cannot be read.
        DataError: A pattern matches nothing, or a link that leads elsewhere.
    """
    from efficientllm.data.sources.files import matched_files
    from efficientllm.data.tokenizer import adopted_files

    data = configuration.profile.data
    named: dict[str, list[Path]] = {}
    if data.tokenizer.path is not None:
        named["data.tokenizer.path"] = adopted_files(Path(data.tokenizer.path))
    if data.task.path is not None:
        named["data.task.path"] = [Path(data.task.path)]
    if data.source == "files" and data.files is not None:
        named["data.files.paths"] = matched_files(data.files.paths)
    hashes = {}
    for key, files in named.items():
        for path in files:
            if not path.is_file():
                raise ParameterError(
                    f"{key} names {shown(str(path))}, which is no file: paths are relative to the folder of dvc.yaml"
                    f"{paths.copied_project_hint()}"
                )
            try:
                hashes[str(path)] = file_hash(path)
            except OSError as error:
                raise ParameterError(
                    f"{key} names {path}, which cannot be read ({error.strerror}): change its permissions"
                ) from error
    return hashes
