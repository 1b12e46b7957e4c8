"""Checkpoints of others, checked once Transformers has opened them: it makes do with what does not belong together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllm.bases.gguf_rope import restore_rotations
from efficientllm.errors import ArtifactError, ParameterError

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from transformers import PreTrainedModel

_LISTED = 3
"""How many weights of a wrong shape a message lists."""
_CODES = ("I", "U", "F4", "F6", "F8")
"""How the types begin, as safetensors calls them, that quantized weights are stored in."""


def check_foreign_checkpoint(
    shown: str, name: str, model: "PreTrainedModel", found: dict[str, Any], options: dict[str, Any]
) -> None:
    """Checks that a checkpoint holds plain weights, and those that its configuration asks for and no others.

    What Transformers leaves out of a `.gguf` file is brought back into the configuration before, see `restore_rotations`.

    Args:
        shown: The source, as messages name it.
        name: Folder, or name on the hub, that Transformers opened.
        model: What came of it.
        found: Transformers' report: keys that are missing, unexpected or of another shape.
        options: What Transformers was given besides: `gguf_file`, `revision`.

    Raises:
        ParameterError: The model computes with quantized weights.
        ArtifactError: Weights are missing, left over, of another shape, or codes of a quantization that nothing describes.
    """
    gguf = options.get("gguf_file")
    if gguf is not None:
        from gguf import GGUFReader

        tensors = GGUFReader(Path(name) / gguf).tensors  # once: of a large vocabulary it takes seconds
        restored = restore_rotations(shown, tensors, model)
        left_over = [found for found in _left_over(tensors, model) if found not in restored]
        _check_complete(shown, found | {"unexpected_keys": left_over}, "metadata", "name its safetensors checkpoint")
        return
    _check_types(shown, name, model, options)
    _check_complete(shown, found, "configuration (config.json)", "correct its configuration")


def _left_over(tensors: "Sequence[ReaderTensor]", model: "PreTrainedModel") -> list[str]:
    """Tensors of a `.gguf` file for which the model has no place: Transformers leaves them out of its report."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    from efficientllm.models.imports import known_families

    if model.config.model_type not in known_families():
        return []  # refused by its name afterwards; some families' tensors have other names by the time they are placed
    places = get_gguf_hf_weights_map(model, TensorProcessor())
    return [tensor.name for tensor in tensors if tensor.name not in places]


def _check_types(shown: str, name: str, model: "PreTrainedModel", options: dict[str, Any]) -> None:
    """Checks that weights are stored as numbers: Transformers casts the codes of a quantization to float as they stand.

    Some quantizations it expands where `config.json` describes them; the model is then a plain one.
    """
    from safetensors import safe_open
    from transformers import PretrainedConfig

    if getattr(model, "is_quantized", False):
        raise ParameterError(
            f"base {shown} is quantized, as quantization_config in its config.json says, and plain weights are needed: name "
            "the unquantized checkpoint"
        )
    if PretrainedConfig.get_config_dict(name, **options)[0].get("quantization_config") is not None:
        return
    for path in _weight_files(name, options):
        with safe_open(path, framework="pt") as stored:
            for key in sorted(stored.keys()):
                kind = str(stored.get_slice(key).get_dtype())
                # other names belong to tables, such as the masks that GPT-NeoX calls `attention.bias`
                if key.endswith(".weight") and kind.startswith(_CODES):
                    raise ArtifactError(
                        f"base {shown}: {path.name} holds {key} as {kind}, codes of a quantization that no "
                        "quantization_config in config.json describes: name the unquantized checkpoint, or get this one again "
                        "with its own config.json"
                    )


def _weight_files(name: str, options: dict[str, Any]) -> list[Path]:
    """The files that Transformers has read, of a folder or of the hub's cache."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    from efficientllm.models.weights import CONFIG_FILE, WEIGHTS_FILE

    folder = Path(cached_file(name, CONFIG_FILE, **options)).parent
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    return [folder / file for file in sorted(set(index["weight_map"].values()))]


def _check_complete(shown: str, found: dict[str, Any], description: str, remedy: str) -> None:
    """Checks that a checkpoint and its description ask for the same weights: Transformers draws at random what is missing.

    Tied heads, and buffers of old checkpoints that are computed anew (`rotary_emb.inv_freq`, GPT-NeoX's `attention.bias`
    and `masked_bias`), Transformers has taken out by then.

    Raises:
        ArtifactError: They do not; the message names the first weights.
    """
    if mismatched := sorted(found["mismatched_keys"]):
        listed = "; ".join(
            f"{name} is {list(stored)} in the file and {list(wanted)} in the configuration"
            for name, stored, wanted in mismatched[:_LISTED]
        )
        more = f"; and {len(mismatched) - _LISTED} more" if len(mismatched) > _LISTED else ""
        faults = [f"does not fit its {description}: {listed}{more}"]
    else:
        kinds = (("missing_keys", "lacks {} that its {} asks for, the first {}"),
                 ("unexpected_keys", "holds {} that its {} does not name, the first {}"))  # fmt: skip
        faults = [
            fault.format("a weight" if len(names) == 1 else f"{len(names)} weights", description, names[0])
            for kind, fault in kinds
            if (names := sorted(found[kind]))
        ]
    if faults:
        raise ArtifactError(f"base {shown} {', and '.join(faults)}: get it again, or {remedy}")
