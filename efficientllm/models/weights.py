"""Stored decoders: `config.json` and `model.safetensors`, in the form that Transformers' Auto classes read too."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientllm.errors import ArtifactError
from efficientllm.files import MISSING_REMEDY, read_json, write_bytes, write_json
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

MODEL_TYPE = "efficientllm"
ARCHITECTURE = "EfficientLLMForCausalLM"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RANDOM_FILE = "random-weights.json"

_PREFIX = "decoder."
_FLOATING = ("F32", "BF16", "F16", "F64")
"""Types that weights are computed in, as safetensors calls them; a quantized model has a form of its own."""


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors on any device, by their names, types, shapes and bytes, whatever the order."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as together:  # gigabytes of a large model, for which its training waits
        digests = list(together.map(_tensor_hash, map(tensors.__getitem__, names)))
    return hashlib.sha256(json.dumps(list(zip(names, digests, strict=True))).encode()).hexdigest()


def _tensor_hash(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_decoder(folder: Path, decoder: Decoder) -> None:
    """Writes a decoder; the same weights give the same bytes.

    Args:
        folder: Existing or new folder.
        decoder: The model, on any device.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        _PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in sorted(decoder.state_dict().items())
    }
    _write_config(folder, decoder.config, decoder.embed_tokens.weight.dtype)
    write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))


def save_random(folder: Path, config: DecoderConfig, seed: int) -> None:
    """Writes a decoder whose weights are drawn anew whenever it is loaded, so that a large one takes no room.

    Args:
        folder: Existing or new folder.
        config: The decoder's description.
        seed: Seed of the draw.
    """
    _write_config(folder, config, torch.float32)
    write_json(folder / RANDOM_FILE, {"seed": seed})


def has_random_weights(folder: Path) -> bool:
    """Says whether a folder holds a decoder that was never trained, see `save_random`."""
    return (folder / RANDOM_FILE).exists()


def _write_config(folder: Path, config: DecoderConfig, dtype: torch.dtype) -> None:
    description = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "dtype": str(dtype).removeprefix("torch."),
    }
    write_json(folder / CONFIG_FILE, {**description, **config.to_dict()})


def read_config(folder: Path, remedy: str | None = None) -> DecoderConfig:
    """Reads the configuration of a stored decoder.

    Args:
        folder: What `save_decoder` or `save_random` wrote.
        remedy: What an error says is to be done; for a folder that no stage of this run wrote.

    Raises:
        ArtifactError: The file is missing, damaged, or describes another kind of model.
    """
    path = folder / CONFIG_FILE
    content = read_json(path, remedy)
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        raise ArtifactError(
            f"{path} does not describe a model of EfficientLLM (model_type {MODEL_TYPE!r}): {remedy or MISSING_REMEDY}"
        )
    if content.get("quantization_config") is not None:
        raise ArtifactError(f"{path} describes a quantized model: load it with {ARCHITECTURE}.from_pretrained")
    # Transformers adds fields of its own; those are not ours to judge
    known = set(DecoderConfig.field_names())
    try:
        return DecoderConfig.from_dict({name: value for name, value in content.items() if name in known})
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}: {remedy or MISSING_REMEDY}") from error


def check_decoder(folder: Path, remedy: str | None = None) -> None:
    """Checks that a stored decoder can be loaded, by its configuration and the header of its weights.

    Args:
        folder: What `save_decoder` or `save_random` wrote.
        remedy: What an error says is to be done; for a folder that no stage of this run wrote.

    Raises:
        ArtifactError: A file is missing, truncated, or the two do not fit each other.
        ParameterError: Its configuration names an unknown component, or options or a shape that do not suit it.
    """
    if has_random_weights(folder):
        _seed(folder, remedy)
        build_decoder(read_config(folder, remedy), device="meta")
    else:
        _without_weights(folder, remedy)


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts what a file holds of a model, in place, and leaves tables that are computed anew whenever it is loaded.

    `module.to(dtype)` would cast those too: by angular frequencies in bfloat16, Transformers' rotary embedding turns some
    pairs of the thousandth token by a radian too far.

    Args:
        module: A decoder, or any other model.
        dtype: Type of its weights and saved buffers from then on; integers stay.
    """
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def load_decoder(folder: Path, *, device: Any = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """Loads a stored decoder.

    Args:
        folder: What `save_decoder`, `save_random` or Transformers' `save_pretrained` wrote.
        device: Where to put it.
        dtype: Type of the weights; by default the stored one.

    Raises:
        ArtifactError: A file is missing, truncated, or the two do not fit each other.
    """
    from safetensors.torch import load_file

    if has_random_weights(folder):
        with torch.random.fork_rng():
            torch.manual_seed(_seed(folder))
            return build_decoder(read_config(folder), device=device, dtype=dtype)
    decoder = _without_weights(folder)
    stored = load_file(folder / WEIGHTS_FILE)
    # copied, since tensors of a mapped file would fault in page by page during whatever is measured later
    tensors = {
        name.removeprefix(_PREFIX): tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in stored.items()
    }
    decoder.load_state_dict(tensors, assign=True)
    return decoder


def _seed(folder: Path, remedy: str | None = None) -> int:
    path = folder / RANDOM_FILE
    content = read_json(path, remedy)
    if not isinstance(content, dict) or type(content.get("seed")) is not int:
        raise ArtifactError(f"{path} names no seed: {remedy or MISSING_REMEDY}")
    return int(content["seed"])


def _without_weights(folder: Path, remedy: str | None = None) -> Decoder:
    """Builds a stored decoder whose weights are still to come, and checks that the file has them.

    Raises:
        ArtifactError: A file is missing, truncated, or the two do not fit each other; the message names the first fault.
    """
    from safetensors import SafetensorError, safe_open

    decoder = build_decoder(read_config(folder, remedy), device="meta")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {remedy or MISSING_REMEDY}")
    try:
        with safe_open(path, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
            found = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {remedy or f'delete it and {MISSING_REMEDY}'}") from error
    again = remedy or f"delete the folder and {MISSING_REMEDY}"
    expected = {_PREFIX + name: tensor for name, tensor in decoder.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        shape, stored_type = found.get(name, ("absent", ""))
        wanted = tuple(expected[name].shape) if name in expected else "absent"
        if shape != wanted:
            raise ArtifactError(
                f"{path} does not fit its {CONFIG_FILE}: {name} is {shape} in the file and {wanted} in the "
                f"configuration; {again}"
            )
        if expected[name].is_floating_point() and stored_type not in _FLOATING:
            raise ArtifactError(
                f"{path}: {name} is stored as {stored_type}, and a model needs one of {', '.join(_FLOATING)}: {again}"
            )
    return decoder
