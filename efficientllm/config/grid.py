"""Checks that need the techniques' own code: every cell of the grid can be built from the parameters."""

import glob
from pathlib import Path
from typing import Any

from efficientllm import paths
from efficientllm.config.load import Configuration
from efficientllm.errors import ParameterError
from efficientllm.files import file_hash


def check_grid(configuration: Configuration) -> None:
    """Builds every architecture without allocating it, and checks every technique's own parameters.

    Raises:
        ParameterError: A component, an option or a shape is unfit; the message names the run.
    """
    from efficientllm.models.build import build_decoder, decoder_config
    from efficientllm.quantization.precision import precision
    from efficientllm.tuning.method import tuning_method

    profile = configuration.profile
    vocabulary_size = profile.data.tokenizer.train_vocabulary_size or 50_000  # any size shows whether the shape is fit
    for name in configuration.parameters.architectures:
        choice, settings, shape = configuration.architecture(name)
        try:
            build_decoder(decoder_config(choice, settings, shape, vocabulary_size), device="meta")
        except ParameterError as error:
            raise ParameterError(f"architecture {name!r}: {error}") from None
        if profile.pretrain.training.sequence_length > shape.context_length:
            raise ParameterError(
                f"pretrain.training.sequence_length is {profile.pretrain.training.sequence_length}, more than "
                f"models.{choice.size}.context_length, which is {shape.context_length}"
            )
    for method in configuration.parameters.methods:
        tuning_method(method).options(profile.tune.methods[method])
    for key in configuration.parameters.precisions:
        precision(key).options(profile.quantize[key])
    for size, source in configuration.parameters.bases.items():
        if Path(source).parent == paths.PRETRAIN:  # the length of a checkpoint is known once it has been read
            _check_lengths(configuration, size)
        elif not Path(source).exists():
            raise ParameterError(f"bases.{size} in {paths.PARAMETERS} is {source!r}, which does not exist")


def _check_lengths(configuration: Configuration, size: str) -> None:
    profile = configuration.profile
    context = profile.models[size].context_length
    served = profile.measure.serving_prompt_length + profile.measure.serving_output_length
    for name, length in (
        ("tune.training.sequence_length", profile.tune.training.sequence_length),
        ("measure.serving_prompt_length + serving_output_length", served),
    ):
        if length > context:
            raise ParameterError(f"{name} is {length}, more than models.{size}.context_length, which is {context}")


def data_fingerprint(configuration: Configuration) -> dict[str, Any]:
    """Hashes of the files that the profile names outside the repository's own, which DVC cannot see.

    Raises:
        ParameterError: A named file does not exist.
    """
    data = configuration.profile.data
    named = [data.tokenizer.path, data.task.path]
    if data.source == "files" and data.files is not None:
        for pattern in data.files.paths:
            # not Path.glob: the pattern may be absolute
            named += sorted(glob.glob(pattern, recursive=True)) or [pattern]  # noqa: PTH207
    hashes = {}
    for name in named:
        if name is None:
            continue
        if not Path(name).is_file():
            raise ParameterError(f"{name!r}, which the profile's block `data` names, is not a file")
        hashes[name] = file_hash(Path(name))
    return hashes
