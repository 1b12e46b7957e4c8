"""Native sparse attention (Yuan et al. 2025, arXiv 2502.11089): choice of blocks, and the three branches in plain PyTorch.

Keys of all branches stand at their sequence's own positions: entry s of a sequence is its s-th real token, whatever
padding lies before it. Equation numbers below are the paper's.

Shape suffixes beside the package's: N compression blocks, M selection blocks, R selected blocks per query.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

QUERIES_AT_ONCE = 256
"""Queries whose scores exist at one time, so that no T x T scores ever do."""


@dataclass(frozen=True)
class SparseLayout:
    """Sizes of the three branches, in tokens unless said otherwise; symbols are the paper's.

    Args:
        compression_block: l, tokens that one compressed key stands for.
        compression_stride: d, tokens between the starts of two compression blocks; divides l and l'.
        selection_block: l', tokens of a selection block.
        selected_blocks: n, selection blocks per query, the first and the two latest among them.
        sliding_window: Latest tokens that the sliding branch sees, the query's own included.
    """

    compression_block: int
    compression_stride: int
    selection_block: int
    selected_blocks: int
    sliding_window: int

    def compressed(self, tokens: int) -> int:
        """Number of compression blocks that are complete after `tokens` tokens."""
        return max(0, (tokens - self.compression_block) // self.compression_stride + 1)

    def completes(self, tokens: int) -> bool:
        """Whether the last of `tokens` tokens completes a compression block."""
        return tokens >= self.compression_block and (tokens - self.compression_block) % self.compression_stride == 0

    def selectable(self, tokens: int) -> int:
        """Number of selection blocks that `tokens` tokens touch."""
        return -(-tokens // self.selection_block)


class Memory(NamedTuple):
    """Keys and values of the branches, at least up to the last query; later ones are never seen.

    Args:
        compressed_keys: `[B, N, K, D]`, block i at entry i.
        compressed_values: The same of the values.
        selected_keys: `[B, S, K, D]`, token s at entry s.
        selected_values: The same of the values.
        sliding_keys: `[B, W, K, D]`, tokens from `sliding_start` on.
        sliding_values: The same of the values.
        sliding_start: Position of the sliding branch's first entry, one number or one per sequence `[B]`; entries at
            negative positions are empty.
    """

    compressed_keys: torch.Tensor
    compressed_values: torch.Tensor
    selected_keys: torch.Tensor
    selected_values: torch.Tensor
    sliding_keys: torch.Tensor
    sliding_values: torch.Tensor
    sliding_start: int | torch.Tensor


class Branches(NamedTuple):
    """Output `[B, T, H, D]` of each branch."""

    compressed: torch.Tensor
    selected: torch.Tensor
    sliding: torch.Tensor


def block_importance(weights: torch.Tensor, layout: SparseLayout, count: int) -> torch.Tensor:
    """Sums the weights of compression blocks over the selection blocks that they overlap (equation 9).

    A compression block counts once for each stride of d tokens that it shares with the selection block.

    Args:
        weights: Attention weights of the compression blocks `[..., N]`.
        layout: Sizes of the blocks.
        count: M, number of selection blocks.

    Returns:
        `[..., M]`.
    """
    before = layout.compression_block // layout.compression_stride - 1
    strides = layout.selection_block // layout.compression_stride
    padded = F.pad(weights, (before, count * strides - weights.shape[-1]))
    by_stride = sum(padded[..., shift : shift + count * strides] for shift in range(before + 1))
    assert isinstance(by_stride, torch.Tensor)
    return by_stride.unflatten(-1, (count, strides)).sum(dim=-1)


def choose_blocks(importance_bktm: torch.Tensor, positions_bt: torch.Tensor, layout: SparseLayout) -> torch.Tensor:
    """Chooses each query's blocks: the first, the latest two, and those of the highest importance (equation 11).

    Args:
        importance_bktm: Importance of each selection block, summed over a group's heads (equation 10).
        positions_bt: Positions of the queries, `[B or 1, T]`.
        layout: Sizes of the blocks.

    Returns:
        Indices of blocks in no order, int32 `[B, K, T, R]` with R = min(n, M); -1 where a query sees fewer.
    """
    count = importance_bktm.shape[-1]
    block = torch.arange(count, device=importance_bktm.device)
    own = (positions_bt // layout.selection_block)[:, None, :, None]
    forced = (block == 0) | (block >= own - 1)
    scores = importance_bktm.masked_fill(forced, torch.inf).masked_fill(block > own, -torch.inf)
    best = scores.topk(min(layout.selected_blocks, count), dim=-1, sorted=False)
    return best.indices.masked_fill(best.values == -torch.inf, -1).int()


def sparse_attention(
    q_bthd: torch.Tensor, memory: Memory, positions_bt: torch.Tensor, start: int | None, layout: SparseLayout
) -> Branches:
    """Computes the three branches for any queries, a few hundred at a time.

    Args:
        q_bthd: Queries.
        memory: Keys and values.
        positions_bt: Positions of the queries, `[B or 1, T]`; none exceeds that of the last key.
        start: Position of the first query where all follow each other, which saves scores of keys out of sight; None
            under padding.
        layout: Sizes of the branches.
    """
    length = q_bthd.shape[1]
    pieces = []
    for first in range(0, length, QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, length)
        seen = memory if start is None else _in_sight(memory, start + first, start + last, layout)
        arguments = (q_bthd[:, first:last], seen, positions_bt[:, first:last], layout)
        if length > QUERIES_AT_ONCE and torch.is_grad_enabled():
            # else the backward pass would keep the scores of all pieces
            pieces.append(checkpoint(_piece, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(_piece(*arguments))
    return (
        pieces[0] if len(pieces) == 1 else Branches(*(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)))
    )


def _in_sight(memory: Memory, first: int, last: int, layout: SparseLayout) -> Memory:
    """Cuts the memory to what queries at positions `first` to `last - 1` may see."""
    assert isinstance(memory.sliding_start, int)
    blocks, oldest = layout.compressed(last), max(memory.sliding_start, first - layout.sliding_window + 1)
    window = slice(oldest - memory.sliding_start, last - memory.sliding_start)
    return Memory(
        memory.compressed_keys[:, :blocks], memory.compressed_values[:, :blocks],
        memory.selected_keys[:, :last], memory.selected_values[:, :last],
        memory.sliding_keys[:, window], memory.sliding_values[:, window], oldest,
    )  # fmt: skip


def _piece(q_bthd: torch.Tensor, memory: Memory, positions_bt: torch.Tensor, layout: SparseLayout) -> Branches:
    """The three branches of a few queries."""
    key_heads = memory.selected_keys.shape[2]
    q = q_bthd.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, K, G, T, D]
    query = positions_bt[:, :, None]
    device = q.device

    ends = torch.arange(memory.compressed_keys.shape[1], device=device) * layout.compression_stride
    complete = ends + layout.compression_block - 1 <= query
    compressed, weights = _attend(q, memory.compressed_keys, memory.compressed_values, complete)

    count = layout.selectable(memory.selected_keys.shape[1])
    importance = block_importance(weights.detach().sum(dim=2), layout, count)
    blocks = choose_blocks(importance, positions_bt, layout)
    selected = _attend_selected(q, memory.selected_keys, memory.selected_values, blocks, positions_bt, layout)

    start = memory.sliding_start
    key = torch.arange(memory.sliding_keys.shape[1], device=device)
    key = key + (start if isinstance(start, int) else start[:, None, None])
    near = (key >= 0) & (key <= query) & (key > query - layout.sliding_window)
    sliding, _ = _attend(q, memory.sliding_keys, memory.sliding_values, near)
    return Branches(*(x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (compressed, selected, sliding)))


def _attend(
    q_bkgtd: torch.Tensor, k_bskd: torch.Tensor, v_bskd: torch.Tensor, visible_bts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns attention output `[B, K, G, T, D]` and weights `[B, K, G, T, S]` (float32), zero where nothing is seen.

    `visible_bts` is `[B or 1, T, S]`, or has heads in front of T: `[B, K, T, S]`.
    """
    batch, key_heads, groups, length, width = q_bkgtd.shape
    k, v = (x.to(q_bkgtd.dtype).transpose(1, 2) for x in (k_bskd, v_bskd))
    scores = q_bkgtd.reshape(batch, key_heads, groups * length, width) @ k.transpose(-1, -2) / math.sqrt(width)
    visible = visible_bts[:, None, None] if visible_bts.dim() == 3 else visible_bts[:, :, None]
    weights = _softmax(scores.unflatten(2, (groups, length)), visible)
    out = weights.to(v.dtype).flatten(2, 3) @ v
    return out.unflatten(2, (groups, length)), weights


def _softmax(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax over what is visible, in float32; zeros, with finite gradients, where nothing is."""
    scores = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
    return scores.softmax(dim=-1).masked_fill(~visible, 0.0)


def _attend_selected(
    q_bkgtd: torch.Tensor,
    k_bskd: torch.Tensor,
    v_bskd: torch.Tensor,
    blocks_bktr: torch.Tensor,
    positions_bt: torch.Tensor,
    layout: SparseLayout,
) -> torch.Tensor:
    """Attends causally to the tokens of the chosen blocks (equation 12), by whichever way reads fewer keys."""
    size, width = layout.selection_block, q_bkgtd.shape[-1]
    batch, key_heads, queries, chosen = blocks_bktr.shape
    keys = k_bskd.shape[1]
    if queries * chosen * size >= keys:
        member = blocks_bktr.new_zeros(batch, key_heads, queries, layout.selectable(keys) + 1, dtype=torch.bool)
        member.scatter_(-1, blocks_bktr.long() % member.shape[-1], True)  # -1 falls on the spare last entry
        visible = member[..., :-1].repeat_interleave(size, dim=-1)[..., :keys]
        visible = visible & (torch.arange(keys, device=visible.device) <= positions_bt[:, None, :, None])
        return _attend(q_bkgtd, k_bskd, v_bskd, visible)[0]
    token = blocks_bktr.long()[..., None] * size + torch.arange(size, device=blocks_bktr.device)
    token = token.flatten(-2)  # [B, K, T, R * l']
    visible = (token >= 0) & (token <= positions_bt[:, None, :, None])
    token = token.clamp(0, keys - 1)
    sequence = torch.arange(batch, device=token.device)[:, None, None, None]
    head = torch.arange(key_heads, device=token.device)[:, None, None]
    k, v = (x[sequence, token, head].to(q_bkgtd.dtype) for x in (k_bskd, v_bskd))  # [B, K, T, R * l', D]
    scores = q_bkgtd.transpose(2, 3) @ k.transpose(-1, -2) / math.sqrt(width)
    return (_softmax(scores, visible[:, :, :, None]).to(v.dtype) @ v).transpose(2, 3)
