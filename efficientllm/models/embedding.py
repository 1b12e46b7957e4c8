"""Tables of trained vectors, one for each token or position."""

import torch
from torch import nn


def embedding(rows: int, width: int) -> nn.Embedding:
    """Makes an `nn.Embedding`; on the meta device nothing is drawn for it.

    PyTorch draws normal numbers for that device in Python, by code that imports its compiler: a second of the start of every
    process that only counts a model's parameters.
    """
    if not torch.empty(0).is_meta:
        return nn.Embedding(rows, width)
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
