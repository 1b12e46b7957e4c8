"""Lists of chosen blocks by run of queries, and of queries by block: static in size, so that no host waits for them."""

import torch

_SEGMENT = 1024
"""Queries of a block that one program of the backward pass takes; the first block is chosen by all queries."""


def shared_blocks(
    blocks_bktr: torch.Tensor, queries: int, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lists, for each run of `queries` neighbours, the blocks that any of them chose.

    Returns:
        Blocks `[B, K, tiles, listed]`, a bit for each query that chose them, likewise, and how many `[B, K, tiles]`.
    """
    batch, key_heads, length, chosen = blocks_bktr.shape
    tiles, device = -(-length // queries), blocks_bktr.device
    member = torch.zeros(batch, key_heads, tiles * queries, count + 1, dtype=torch.bool, device=device)
    member[:, :, :length].scatter_(-1, blocks_bktr.long() % (count + 1), True)  # -1 falls on the spare last entry
    bit = torch.arange(queries, dtype=torch.int32, device=device)[:, None]
    bits = (member[..., :count].unflatten(2, (tiles, queries)).int() << bit).sum(dim=3, dtype=torch.int32)
    present = bits != 0
    listed = min(count, queries * chosen)
    place = (present.cumsum(dim=-1) - 1).masked_fill(~present, listed)
    empty = torch.zeros(batch, key_heads, tiles, listed + 1, dtype=torch.int32, device=device)
    block = torch.arange(count, dtype=torch.int32, device=device).expand_as(bits)
    lists, members = (empty.scatter(-1, place, x)[..., :listed].contiguous() for x in (block, bits))
    return lists, members, present.sum(dim=-1, dtype=torch.int32)


def queries_by_block(blocks_bktr: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Lists the queries that chose each block, and cuts the lists into segments of bounded length.

    Returns:
        Queries in the order of their blocks `[B K, T R]`; the first segment of each block and the one behind the last
        `[B K, M + 1]`; and of each segment its block, its first query's index and the one behind its last.
    """
    chosen, device = blocks_bktr.shape[-1], blocks_bktr.device
    flat = blocks_bktr.flatten(2).flatten(0, 1)
    block, order = torch.where(flat < 0, count, flat).sort(dim=1, stable=True)
    edges = torch.arange(count + 1, dtype=block.dtype, device=device).expand(flat.shape[0], -1).contiguous()
    bounds = torch.searchsorted(block.contiguous(), edges)
    needed = (bounds.diff(dim=1) + _SEGMENT - 1) // _SEGMENT
    block_segments = torch.nn.functional.pad(needed.cumsum(dim=1), (1, 0))
    segments = flat.shape[1] // _SEGMENT + count
    segment = torch.arange(segments, device=device).expand(flat.shape[0], -1).contiguous()
    owner = torch.searchsorted(block_segments[:, 1:].contiguous(), segment, right=True).clamp_max(count - 1)
    first = bounds.gather(1, owner) + (segment - block_segments.gather(1, owner)) * _SEGMENT
    last = torch.minimum(first + _SEGMENT, bounds.gather(1, owner + 1))
    used = segment < block_segments[:, -1:]
    tables = ((order // chosen), block_segments, owner, first * used, last * used)
    return tuple(x.int().contiguous() for x in tables)
