"""What native sparse attention keeps of a sequence: where its tokens stand, and how blocks of keys are compressed.

A sequence starts at its first real token, whatever padding lies before it; so under padding, places differ between the
sequences of a batch.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.models.interfaces import Span
from efficientllm.models.sparse_attention import SparseLayout


class BlockCompression(nn.Module):
    """Maps the l keys (or values) of a block to one: W2 silu(W1 [x_1 + e_1, ..., x_l + e_l] + b1) + b2 (equation 7).

    Args:
        block: l.
        width: D, width of a key, of the hidden layer and of the result.
    """

    undecayed = ("position",)

    def __init__(self, block: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(block, width))
        self.inner = nn.Linear(block * width, width)
        self.outer = nn.Linear(width, width)

    def initialize(self) -> None:
        """Starts near the mean of the block: W1 averages, and 2 silu(x) is close to x for small x."""
        block, width = self.position.shape
        identity = torch.eye(width, dtype=self.inner.weight.dtype, device=self.inner.weight.device)
        self.inner.weight.copy_(identity.repeat(1, block) / block)
        self.outer.weight.copy_(2 * identity)

    def forward(self, blocks_bnlkd: torch.Tensor) -> torch.Tensor:
        """Compresses blocks to `[B, N, K, D]`."""
        marked = blocks_bnlkd + self.position.to(blocks_bnlkd.dtype)[:, None]
        compressed: torch.Tensor = self.outer(F.silu(self.inner(marked.transpose(2, 3).flatten(3))))
        return compressed

    def flops_per_block(self) -> float:
        """Forward FLOPs for one block of one head."""
        return 2 * (self.inner.weight.numel() + self.outer.weight.numel())


class Chunk(NamedTuple):
    """Where the tokens of a pass stand.

    Args:
        start: Tokens in the cache, padding included.
        length: Tokens of this pass, padding included.
        before: Real tokens in the cache, one number or one per sequence `[B]`.
        added: Real tokens of this pass, likewise.
        order_bt: Indices that put each sequence's real tokens first; None where all are real.
        positions_bt: Positions of the queries, `[B or 1, T]`.
    """

    start: int
    length: int
    before: int | torch.Tensor
    added: int | torch.Tensor
    order_bt: torch.Tensor | None
    positions_bt: torch.Tensor

    @property
    def fresh(self) -> bool:
        """Whether nothing stands before this pass."""
        return self.start == 0


def place(span: Span, device: torch.device) -> Chunk:
    """Finds where a pass stands in its sequences, which start at their first real token."""
    if span.key_real_bs is None or span.padding_mask_bt is None or span.positions_bt is None:
        positions = torch.arange(span.start, span.end, device=device)[None]
        return Chunk(span.start, span.length, span.start, span.length, None, positions)
    real = span.padding_mask_bt
    before = 0 if span.start == 0 else span.key_real_bs[:, : span.start].sum(dim=1)
    order = (~real).byte().argsort(dim=1, stable=True)
    return Chunk(span.start, span.length, before, real.sum(dim=1), order, span.positions_bt)


def complete_blocks(layout: SparseLayout, tokens: int | torch.Tensor) -> Any:
    """Number of complete compression blocks, of one length or of one per sequence."""
    if isinstance(tokens, int):
        return layout.compressed(tokens)
    return ((tokens - layout.compression_block) // layout.compression_stride + 1).clamp_min(0)


def take(x_bs: torch.Tensor, first: int | torch.Tensor, length: int | None = None) -> torch.Tensor:
    """Returns `length` entries from `first` on, one number or one per sequence `[B]`, or the entries `first` `[B, T]`."""
    if isinstance(first, int):
        assert length is not None
        return x_bs[:, first : first + length]
    if length is not None:
        first = first[:, None] + torch.arange(length, device=first.device)
    sequence = torch.arange(x_bs.shape[0], device=first.device)[:, None]
    return x_bs[sequence, first.clamp(0, x_bs.shape[1] - 1)]


def put(store_bs: torch.Tensor, first: int | torch.Tensor, x_bt: torch.Tensor) -> None:
    """Writes entries from `first` on; what would fall behind the store lands on its last entry."""
    if isinstance(first, int):
        store_bs[:, first : first + x_bt.shape[1]] = x_bt
        return
    entry = first[:, None] + torch.arange(x_bt.shape[1], device=first.device)
    sequence = torch.arange(x_bt.shape[0], device=first.device)[:, None]
    store_bs[sequence, entry.clamp_max(store_bs.shape[1] - 1)] = x_bt.to(store_bs.dtype)
