"""The three branches of native sparse attention on whole sequences."""

import torch

from efficientllm.models.sparse_attention import Branches, Memory, SparseLayout, block_importance, choose_blocks
from efficientllm.models.sparse_kernels.banded import banded_attention, group_weights
from efficientllm.models.sparse_kernels.selected import selected_attention

_IMPORTANCE_ELEMENTS = 2**25
"""Compressed weights that exist at one time."""


def fast_sparse_attention(q_bthd: torch.Tensor, memory: Memory, layout: SparseLayout) -> Branches:
    """Computes `sparse_attention` for whole sequences without padding.

    Args:
        q_bthd: Queries of all positions.
        memory: Keys and values, all from position 0 on.
        layout: Sizes of the branches.
    """
    length = q_bthd.shape[1]
    positions = torch.arange(length, device=q_bthd.device)[None]
    count = layout.selectable(length)
    stride, block = layout.compression_stride, layout.compression_block
    key_heads = memory.selected_keys.shape[2]
    with torch.autocast(q_bthd.device.type, enabled=False):
        if memory.compressed_keys.shape[1]:
            keys, values = memory.compressed_keys.to(q_bthd.dtype), memory.compressed_values.to(q_bthd.dtype)
            compressed, log_sum = banded_attention(q_bthd, keys, values, stride, block, 0)
            with torch.no_grad():
                at_once = max(64, _IMPORTANCE_ELEMENTS // (q_bthd.shape[0] * key_heads * keys.shape[1]))
                pieces = []
                for first in range(0, length, at_once):
                    last = min(first + at_once, length)
                    weights = group_weights(
                        q_bthd[:, first:last].detach(),
                        keys.detach(),
                        log_sum[:, first:last].detach(),
                        stride,
                        block,
                        first,
                    )
                    importance = block_importance(weights, layout, count)
                    pieces.append(choose_blocks(importance, positions[:, first:last], layout))
                blocks = torch.cat(pieces, dim=2)
        else:
            compressed = torch.zeros_like(q_bthd)
            nothing = torch.zeros(q_bthd.shape[0], key_heads, length, count, device=q_bthd.device)
            blocks = choose_blocks(nothing, positions, layout)
        selected = selected_attention(
            q_bthd, memory.selected_keys, memory.selected_values, blocks, layout.selection_block
        )
        sliding, _ = banded_attention(q_bthd, memory.sliding_keys, memory.sliding_values, 1, 1, layout.sliding_window)
    return Branches(compressed, selected, sliding)
