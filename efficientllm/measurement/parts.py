"""What the parts of a model are stored in: which types, and how many bytes."""

from typing import TypedDict

from torch import nn

from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.decoder import Decoder


class Part(TypedDict):
    """Bytes of a part of a model in memory, and the types of its weights."""

    bytes: int
    types: list[str]


def stored_parts(decoder: Decoder) -> dict[str, Part]:
    """Weighs embedding, output head, linear layers and all the rest (norms, biases outside of them, stacked experts).

    Args:
        decoder: The model as it is served; a tied head is the embedding and has no bytes of its own.
    """
    linear = nn.ModuleList(
        module for name, module in decoder.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"
    )
    embedding, head = _part(decoder.embed_tokens), _part(decoder.lm_head or nn.ModuleList())
    layers = _part(linear)
    known = {id(parameter) for part in (decoder.embed_tokens, decoder.lm_head, linear) if part is not None
             for parameter in part.parameters()}  # fmt: skip
    others = sorted(
        {str(value.dtype).removeprefix("torch.") for value in decoder.parameters() if id(value) not in known}
    )
    rest = bytes_in_memory(decoder) - embedding["bytes"] - head["bytes"] - layers["bytes"]
    return {
        "embedding": embedding,
        "output head": head,
        "linear layers": layers,
        "norms and other weights": Part(bytes=rest, types=others),
    }


def _part(module: nn.Module) -> Part:
    types = sorted({str(value.dtype).removeprefix("torch.") for value in module.parameters()})
    return Part(bytes=bytes_in_memory(module), types=types)
