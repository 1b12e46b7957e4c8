"""Evaluations that are kept under all that decides them, so that the same model is not evaluated twice.

Every quantized cell is compared with its model in bfloat16, which the cell of that precision has evaluated already, in a process of
its own. What is kept lies beside the checkpoints, outside DVC's outputs: without it the figures are the same and take longer.
"""

from pathlib import Path

import torch

import efficientllm
from efficientllm import paths
from efficientllm.config import Configuration
from efficientllm.data.manifest import MANIFEST_FILE
from efficientllm.data.packing import split_path
from efficientllm.data.tokenizer import TOKENIZER_FILE
from efficientllm.errors import ArtifactError
from efficientllm.evaluation.outcomes import Outcomes
from efficientllm.files import content_hash, file_hash, read_checked_json, sources_hash, write_checked_json
from efficientllm.measurement.quality import held_out_folder
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import tensors_hash


def evaluation_key(configuration: Configuration, decoder: Decoder, base: Path) -> str:
    """Names an evaluation by the model's weights and shape, the text, the settings, the code and the machine.

    Args:
        configuration: The run's parameters.
        decoder: The model, in evaluation mode.
        base: Folder of the base that it was tuned from, whose tokenizer it understands.
    """
    profile, device = configuration.profile, decoder.embed_tokens.weight.device
    return content_hash(
        {
            "weights": tensors_hash(decoder.state_dict()),
            "model": repr(decoder.config),
            "kernels": decoder.kernels(device),
            "data": file_hash(paths.DATA / MANIFEST_FILE),
            "held_out": file_hash(split_path(held_out_folder(base), "test")),
            "tokenizer": file_hash(base / TOKENIZER_FILE),
            "lengths": [profile.pretrain.training.sequence_length, profile.tune.training.sequence_length],
            "settings": [profile.measure.perplexity_windows, profile.measure.evaluation_batch_size],
            "code": sources_hash(Path(efficientllm.__file__).parent),
            "machine": [file_hash(paths.HARDWARE), str(device), torch.get_num_threads(), torch.__version__],
        }
    )


def keep(key: str, outcomes: Outcomes) -> None:
    """Keeps what an evaluation gave."""
    write_checked_json(paths.evaluation(key), outcomes.content())


def kept(key: str) -> Outcomes | None:
    """Returns what the evaluation of this name gave; None where it is not kept, or what is kept is damaged."""
    path = paths.evaluation(key)
    if not path.exists():
        return None
    try:
        return Outcomes.of(read_checked_json(path))
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        print(f"{path} is not used ({error}): evaluating again")
        return None
