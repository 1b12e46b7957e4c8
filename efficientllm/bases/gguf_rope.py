"""The stretched rotations of Llama 3.1 and later in a `.gguf` file, which Transformers leaves out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efficientllm.errors import ArtifactError

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from transformers import PreTrainedModel

_DIVISORS = "rope_freqs.weight"
"""By how much each pair's frequency is divided, `[D / 2]`: all that a `.gguf` file tells of the stretching."""

_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1, 3.2 and 3.3 have in common (arXiv 2407.21783 and their checkpoints' `config.json`); their `factor` differs."""
_TOLERANCE = 1e-3


def restore_rotations(shown: str, tensors: "Sequence[ReaderTensor]", model: "PreTrainedModel") -> list[str]:
    """Writes the stretching into the model's configuration where the file has one; without it positions turn by other angles.

    Args:
        shown: The source, as messages name it.
        tensors: The file's.
        model: What Transformers has made of it.

    Returns:
        The names of the tensors that were brought back.

    Raises:
        ArtifactError: The file stretches its rotations in another way than Llama 3.1 and later.
    """
    import numpy as np
    from gguf import GGMLQuantizationType
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stored = [tensor for tensor in tensors if tensor.name == _DIVISORS]
    if not stored or model.config.model_type != "llama":
        return []
    divisors = np.array(stored[0].data) if stored[0].tensor_type == GGMLQuantizationType.F32 else np.zeros(0)
    plain = dict(model.config.rope_parameters)
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    frequencies = plain["rope_theta"] ** -(np.arange(0, width, 2) / width)
    model.config.rope_parameters = plain | _BOUNDS | {"rope_type": "llama3", "factor": float(divisors.max(initial=1.0))}
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    expected = frequencies / stretched.double().numpy()
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=_TOLERANCE):
        raise ArtifactError(
            f"base {shown} stretches its rotations ({_DIVISORS}) in another way than Llama 3.1 and later: name its safetensors "
            "checkpoint"
        )
    return [_DIVISORS]
