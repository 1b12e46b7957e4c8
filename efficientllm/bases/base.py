"""The `base` stage: one source in, one decoder of ours with its tokenizer and its held-out tokens out."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientllm import paths, pipeline
from efficientllm.bases.kept_text import check_text_kept
from efficientllm.bases.own import check_own_checkpoint
from efficientllm.bases.sources import is_own_checkpoint, open_checkpoint, random_shape
from efficientllm.config import Configuration
from efficientllm.config.grid import check_lengths
from efficientllm.data.manifest import read_manifest
from efficientllm.data.packing import open_split, write_split
from efficientllm.data.prompts import encode_questions, encode_split
from efficientllm.data.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TextTokenizer,
    copy_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import file_hash, read_checked_json, whole_directory, write_checked_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from efficientllm.evaluation.outcomes import Outcomes

HELD_OUT = "test"
RANDOM = "not measured: random weights"
"""Why a model that was never trained has no quality."""


def base_folder(size: str) -> Path:
    """Folder of the model that a size is tuned from."""
    return paths.artifact("base", size)


def make_base(configuration: Configuration, size: str) -> None:
    """Writes the base of a size.

    Args:
        configuration: The run's parameters.
        size: A key of `bases` in params.yaml.

    Raises:
        ParameterError: The source does not exist, is a model that cannot be read as a decoder of ours, does not fit its
            tokenizer or the data's, or has a tokenizer that loses the held-out text.
        ArtifactError: The source is damaged.
    """
    from efficientllm.models.imports import from_transformers
    from efficientllm.models.weights import has_random_weights, read_config, save_decoder, save_random

    source = Path(configuration.parameters.bases[size])
    with whole_directory(base_folder(size)) as folder:
        if is_own_checkpoint(source):
            check_own_checkpoint(source, size)
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_only_the_model)
        elif (shape := random_shape(source)) is not None:
            save_random(folder, shape, configuration.parameters.seed)
            copy_tokenizer(paths.DATA, folder)
        else:
            model, tokenizer = open_checkpoint(source)
            save_decoder(folder, from_transformers(model))
            save_tokenizer(folder, _text_tokenizer(tokenizer, source))
        config = read_config(folder)
        profile = configuration.profile
        trained = {
            "pretrain.training.sequence_length, at which perplexity is taken,": profile.pretrain.training.sequence_length,
            "tune.training.sequence_length": profile.tune.training.sequence_length,
        }
        allowed = f"the {config.context_length} tokens that {source} was made for: lower it"
        check_lengths(profile, trained, config.context_length, allowed)
        if file_hash(folder / TOKENIZER_FILE) == file_hash(paths.DATA / TOKENIZER_FILE):
            tokens = open_split(paths.DATA, HELD_OUT)
        else:
            _check_lossless(size)
            texts, tokenizer = _held_out_texts(), load_tokenizer(folder)
            tokens = tokenizer.encode_documents(texts)
            check_text_kept(size, source, texts, tokenizer.decode(tokens.tolist()))
            write_split(folder, HELD_OUT, tokens)
        _check_embeddings(configuration, size, folder, config.vocabulary_size, tokens)
    untrained = has_random_weights(base_folder(size))
    write_checked_json(paths.base_quality(size), {"reason": RANDOM} if untrained else _quality(configuration, size))


def _quality(configuration: Configuration, size: str) -> dict[str, Any]:
    """Evaluates a base on the held-out text and the task, as its tuned models are, and in the type that they are in."""
    from efficientllm.device import autocast_type
    from efficientllm.device_lock import claimed
    from efficientllm.evaluation.outcomes import Outcomes
    from efficientllm.measurement.quality import perplexity_values, task_values
    from efficientllm.models.weights import load_decoder

    folder = base_folder(size)
    with claimed(f"base@{size}", alone=False) as device:
        dtype = autocast_type(configuration.profile.tune.training.autocast, device)
        decoder = load_decoder(folder, device=device, dtype=dtype).requires_grad_(False).eval()
        values, losses = perplexity_values(configuration, decoder, device, folder)
        scored, groups, correct = task_values(configuration, decoder, device, folder)
    return {
        "values": {key: value.model_dump(mode="json") for key, value in (values | scored).items()},
        "task_groups": groups,
        **Outcomes(losses, correct).content(),
    }


def read_base_quality(size: str) -> "Outcomes":
    """Reads how an untuned base does on the held-out windows and on the task.

    Args:
        size: A key of `bases` in params.yaml.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    from efficientllm.evaluation.outcomes import Outcomes

    path = paths.base_quality(size)
    content = read_checked_json(path)
    try:
        return Outcomes.of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} holds no quality of a base ({error}): run `dvc repro -f -s {pipeline.address(f'base@{size}')}`"
        ) from error


def _only_the_model(folder: str, names: list[str]) -> set[str]:
    """Leaves out whatever else a run's folder holds, such as the models of further seeds."""
    from efficientllm.models.weights import CONFIG_FILE as MODEL_CONFIG
    from efficientllm.models.weights import RANDOM_FILE, WEIGHTS_FILE

    del folder
    return set(names) - {MODEL_CONFIG, WEIGHTS_FILE, RANDOM_FILE, TOKENIZER_FILE, CONFIG_FILE}


def _text_tokenizer(tokenizer: "PreTrainedTokenizerBase", source: Path) -> TextTokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.eos_token is None:
        lacks = "an end-of-text token" if backend is not None else "a tokenizer.json of the library `tokenizers`"
        raise ParameterError(f"base {source} lacks {lacks}")
    return TextTokenizer(backend, str(tokenizer.eos_token))


def _check_lossless(size: str) -> None:
    if read_manifest(paths.DATA)["tokenizer"].get("lossless") is False:
        raise ParameterError(
            f"data.tokenizer.path names a tokenizer that does not give the text back, and bases.{size} has another one, which "
            "would be judged on altered text: leave data.tokenizer.path null, so that one is trained, or name a tokenizer "
            "that gives the text back"
        )


def _check_embeddings(
    configuration: Configuration, size: str, folder: Path, embeddings: int, tokens: np.ndarray
) -> None:
    """Checks that a base has an embedding for each token of the text and the task; no matter those that do not occur."""
    if load_tokenizer(folder).vocabulary_size <= embeddings:
        return
    length = configuration.profile.tune.training.sequence_length
    largest = int(tokens.max(initial=0))
    for split in ("train", "validation"):
        for example in encode_split(paths.DATA, split, length, tokenizer_folder=folder):
            largest = max(largest, *example.token_ids)
    for question in encode_questions(paths.DATA, HELD_OUT, length, tokenizer_folder=folder):
        largest = max(largest, *question.prompt, *(token for answer in question.answers for token in answer))
    if largest >= embeddings:
        raise ParameterError(
            f"bases.{size} in params.yaml is {configuration.parameters.bases[size]}, whose model has {embeddings} embeddings, "
            f"too few for token {largest} of its tokenizer, which the text or the task holds: name a model and a tokenizer "
            "that belong together (vocab_size in config.json, or vocabulary_size of a shape)"
        )


def _held_out_texts() -> list[str]:
    """The held-out documents, decoded from the prepared tokens.

    The text is the same only where the prepared tokenizer is without loss, see `_check_lossless`.
    """
    prepared = load_tokenizer(paths.DATA)
    tokens = open_split(paths.DATA, HELD_OUT)
    ends = np.flatnonzero(tokens == prepared.end_token_id)
    return [prepared.decode(document.tolist()) for document in np.split(tokens, ends + 1) if len(document)]
