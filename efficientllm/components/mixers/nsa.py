"""Native sparse attention (NSA; Yuan et al. 2025, arXiv 2502.11089).

Each query attends in three ways, each with keys and values of its own: to compressed blocks of tokens, to the tokens of
a few blocks which the compressed scores choose, and to the latest tokens. A sigmoid gate weighs each branch in each
head (their equation 5).

Where the paper leaves a choice: the map phi that compresses a block (equation 7) is a two-layer perceptron shared by
all heads; it sees keys before their rotation, and a compressed key is rotated as the last token of its block.
"""

import importlib.util
import math
from typing import Any

import torch
from pydantic import Field
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.attention import rotate
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import LayerState, Mixer, Rotation, Span
from efficientllm.models.sparse_attention import Branches, Memory, SparseLayout, sparse_attention
from efficientllm.models.sparse_memory import BlockCompression, Chunk, complete_blocks, place, put, take


class SparseOptions(Section):
    """Parameters of the layer; the defaults are the paper's."""

    compression_block: int = Field(default=32, ge=1, description="tokens that one compressed key stands for")
    compression_stride: int = Field(default=16, ge=1, description="tokens between the starts of compression blocks")
    selection_block: int = Field(default=64, ge=1, description="tokens of a selected block")
    selected_blocks: int = Field(default=16, ge=3, description="blocks per query: the first, the latest two, the best")
    sliding_window: int = Field(default=512, ge=1, description="latest tokens that the sliding branch sees")


class NativeSparseAttention(Mixer):
    """Gated sum of compressed, selected and sliding attention.

    The cache grows by 2 K D numbers per token for the selected branch and 2 K D / d for the compressed one; the sliding
    window and the last l - 1 uncompressed keys and values take the same room for every length.

    Raises:
        ParameterError: The heads or the sizes of the blocks do not divide as they must.
    """

    Options = SparseOptions
    reference_kernel = "masked scores of a few queries at a time"
    fast_kernel = "block-sparse Triton kernels"

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        if config.hidden_size % config.heads:
            raise ParameterError(f"hidden_size {config.hidden_size} is not a multiple of heads {config.heads}")
        if config.heads % config.key_value_heads:
            raise ParameterError(f"heads {config.heads} is not a multiple of key_value_heads {config.key_value_heads}")
        self.layout = _checked_layout(self.options)
        # a token that completes a block takes a path of its own, and the first block may still be empty
        self.decoding_period = self.layout.compression_block
        self.heads, self.key_value_heads, self.head_dim = config.heads, config.key_value_heads, config.head_dim
        self.rotary_dim = config.head_dim
        width, shared = config.hidden_size, config.key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, 3 * shared, bias=False)  # of the compressed, selected and sliding branch
        self.v_proj = nn.Linear(width, 3 * shared, bias=False)
        self.gate_proj = nn.Linear(width, 3 * config.heads)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.key_compression = BlockCompression(self.layout.compression_block, config.head_dim)
        self.value_compression = BlockCompression(self.layout.compression_block, config.head_dim)

    def initialize(self) -> None:
        """Starts the compression near the mean of each block."""
        self.key_compression.initialize()
        self.value_compression.initialize()

    def fast_obstacle(self, device: torch.device) -> str | None:
        """The kernels are written in Triton, for CUDA GPUs."""
        if device.type != "cuda":
            return f"need a CUDA GPU with Triton, and this is a {device.type.upper()}"
        return "need Triton, which is not installed" if importlib.util.find_spec("triton") is None else None

    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Attends from each token of `hidden_btc` to itself and to chosen earlier ones, those of the state included.

        Raises:
            ParameterError: The positional encoding adds a bias to attention scores.
        """
        bias = span.attention_mask is not None and span.attention_mask.dtype != torch.bool
        if bias or span.bias_by_distance_hp is not None:
            raise ParameterError(
                "mixer 'nsa' has no scores by distance for compressed blocks to add a positional bias to: "
                "use position 'rope' or 'none' with it"
            )
        chunk = place(span, hidden_btc.device)
        rotation, shared = span.rotation, self.key_value_heads
        q = self.q_proj(hidden_btc).unflatten(-1, (self.heads, self.head_dim))
        k = self.k_proj(hidden_btc).unflatten(-1, (3 * shared, self.head_dim))
        v = self.v_proj(hidden_btc).unflatten(-1, (3 * shared, self.head_dim))
        raw_k, later_k = k.split([shared, 2 * shared], dim=2)
        if rotation is not None:
            q, later_k = rotate(q, rotation), rotate(later_k, rotation)
            if rotation[0].dim() == 3:
                rotation = (rotation[0][None], rotation[1][None])
        if chunk.order_bt is not None:
            raw_k, later_k, v = (take(x, chunk.order_bt) for x in (raw_k, later_k, v))
            if rotation is not None:
                rotation = (take(rotation[0], chunk.order_bt), take(rotation[1], chunk.order_bt))
        raw_v, later_v = v.split([shared, 2 * shared], dim=2)
        keys = self._extend("keys", self.key_compression, raw_k, later_k, chunk, rotation, state)
        values = self._extend("values", self.value_compression, raw_v, later_v, chunk, None, state)
        window_start = chunk.before - (keys[2].shape[1] - span.length)
        memory = Memory(keys[0], values[0], keys[1], values[1], keys[2], values[2], window_start)
        branches = self._branches(q, memory, chunk)
        gates = self.gate_proj(hidden_btc).sigmoid().unflatten(-1, (3, self.heads, 1)).unbind(dim=2)
        mixed = gates[0] * branches.compressed + gates[1] * branches.selected + gates[2] * branches.sliding
        return self.o_proj(mixed.flatten(2))

    def _branches(self, q_bthd: torch.Tensor, memory: Memory, chunk: Chunk) -> Branches:
        """Runs the kernels on whole sequences; steps of decoding and padded sequences take the plain path."""
        whole = chunk.fresh and chunk.order_bt is None and chunk.length > 1
        if whole and self.runs_fast(q_bthd.device):
            from efficientllm.models.sparse_kernels.branches import fast_sparse_attention

            return fast_sparse_attention(q_bthd, memory, self.layout)
        # the keys of a single query are all within reach of it, and the rest of the cache behind them is hidden
        start = chunk.start if chunk.order_bt is None and chunk.length > 1 else None
        return sparse_attention(q_bthd, memory, chunk.positions_bt, start, self.layout)

    def _extend(
        self,
        name: str,
        compression: BlockCompression,
        raw_btkd: torch.Tensor,
        later_btkd: torch.Tensor,
        chunk: Chunk,
        rotation: Rotation | None,
        state: LayerState | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adds a pass's keys, or values, to the state and returns those to attend to.

        Args:
            name: `keys` or `values`.
            compression: Their phi.
            raw_btkd: What the compressed branch compresses, not rotated.
            later_btkd: Those of the selected and of the sliding branch side by side, rotated.
            chunk: Where the pass stands.
            rotation: Rotation `[B or 1, T, 1, D]` for compressed keys.
            state: The layer's state, or None.

        Returns:
            Entries of the compressed, of the selected and of the sliding branch, each from the earliest one on.
        """
        selected, sliding = later_btkd.chunk(2, dim=2)
        if state is None:
            return self._compress(compression, raw_btkd, 0, chunk, rotation), selected, sliding
        if chunk.length == 1 and not chunk.fresh and chunk.order_bt is None:
            return self._extend_by_one(name, compression, (raw_btkd, selected, sliding), chunk.start, rotation, state)
        recent, window = state[f"recent_{name}"], state[f"sliding_{name}"]
        tail, reach = recent.shape[1], window.shape[1]
        raw_btkd = torch.cat((recent.to(raw_btkd.dtype), raw_btkd), dim=1)
        near = torch.cat((window.to(sliding.dtype), sliding), dim=1)
        compressed = self._compress(compression, raw_btkd, tail, chunk, rotation)
        recent.copy_(take(raw_btkd, chunk.added, tail))
        window.copy_(take(near, chunk.added, reach))
        put(state[f"compressed_{name}"], complete_blocks(self.layout, chunk.before), compressed)
        put(state[f"selected_{name}"], chunk.before, selected)
        if chunk.fresh:
            return compressed, selected, sliding
        end = chunk.start + chunk.length
        blocks = self.layout.compressed(end)
        return state[f"compressed_{name}"][:, :blocks], state[f"selected_{name}"][:, :end], near

    def _extend_by_one(
        self,
        name: str,
        compression: BlockCompression,
        added: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        before: int,
        rotation: Rotation | None,
        state: LayerState,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`_extend` by one token of each sequence, in shapes that are the same at every position.

        So one compiled program decodes all of them, and a second one those tokens that complete a block.
        """
        raw, selected, sliding = added
        recent, window = state[f"recent_{name}"], state[f"sliding_{name}"]
        latest = torch.cat((recent, raw.to(recent.dtype)), dim=1)
        near = torch.cat((window, sliding.to(window.dtype)), dim=1)
        recent.copy_(latest[:, 1:])
        window.copy_(near[:, 1:])
        state[f"selected_{name}"][:, before : before + 1] = selected
        if self.layout.completes(before + 1):
            compressed = compression(latest[:, None])
            if rotation is not None:
                compressed = rotate(compressed, rotation)  # the block's last token is this one
            store = state[f"compressed_{name}"]
            # in a tensor, since the first block's number, 0, would be a constant of a program of its own
            number = torch.full((1,), self.layout.compressed(before + 1) - 1, device=store.device)
            store.index_copy_(1, number, compressed.to(store.dtype))
        return state[f"compressed_{name}"], state[f"selected_{name}"], near

    def _compress(
        self,
        compression: BlockCompression,
        raw_bskd: torch.Tensor,
        lead: int,
        chunk: Chunk,
        rotation: Rotation | None,
    ) -> torch.Tensor:
        """Compresses the blocks that this pass completes, `[B, N, K, D]`.

        Under padding sequences complete different numbers of blocks: there are entries for the most that any can, and
        those beyond a sequence's own hold blocks that no query of it sees yet.

        Args:
            compression: phi.
            raw_bskd: Keys or values, the pass's first at entry `lead`.
            lead: Earlier keys or values at hand.
            chunk: Where the pass stands.
            rotation: The pass's rotation, or None.
        """
        layout, stride = self.layout, self.layout.compression_stride
        end = layout.compressed(chunk.start + chunk.length)
        done = complete_blocks(layout, chunk.before)
        count = end - done if isinstance(done, int) else min(end, -(-chunk.length // stride))
        if count == 0:
            return raw_bskd[:, :0]
        overlap = layout.compression_block // stride
        first = done * stride - chunk.before
        strides = take(raw_bskd, first + lead, (count - 1 + overlap) * stride).unflatten(1, (-1, stride))
        compressed = compression(torch.cat([strides[:, shift : shift + count] for shift in range(overlap)], dim=2))
        if rotation is None:
            return compressed
        last = first + layout.compression_block - 1
        at_ends = [take(x, last, (count - 1) * stride + 1)[:, ::stride] for x in rotation]
        return rotate(compressed, (at_ends[0], at_ends[1]))

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates keys and values of each branch, and those that no complete block holds yet, `[B, entries, K, D]`."""
        entries = {
            # a spare one for blocks that padding leaves incomplete
            "compressed": self.layout.compressed(max_length) + 1,
            "recent": self.layout.compression_block - 1,
            "selected": max_length,
            "sliding": min(self.layout.sliding_window, max_length),
        }
        return {
            f"{part}_{name}": torch.zeros(
                batch_size, count, self.key_value_heads, self.head_dim, dtype=dtype, device=device
            )
            for part, count in entries.items()
            for name in ("keys", "values")
        }

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the output projection's weight."""
        return [self.o_proj.weight]

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token that sees `context` tokens.

        Projections and gates; phi of keys and of values, once per d tokens; and 4 H D for each key of the three
        branches: (context - l) / d + 1 compressed ones, those of at most n - 1 whole selected blocks and of the token's
        own block up to itself, and at most a window of sliding ones. The importance of blocks is a sum of the compressed
        branch's weights and multiplies nothing.
        """
        layout = self.layout
        projections = (self.q_proj, self.k_proj, self.v_proj, self.gate_proj, self.o_proj)
        flops = 2.0 * sum(projection.weight.numel() for projection in projections)
        both = self.key_compression.flops_per_block() + self.value_compression.flops_per_block()
        flops += self.key_value_heads * both / layout.compression_stride
        keys = max(0.0, (context - layout.compression_block) / layout.compression_stride + 1)
        own = context - (math.ceil(context / layout.selection_block) - 1) * layout.selection_block
        keys += min(context, (layout.selected_blocks - 1) * layout.selection_block + own)
        keys += min(context, layout.sliding_window)
        return flops + 4 * self.heads * self.head_dim * keys

    def cache_elements_per_token(self) -> int:
        """Numbers kept per token: a selected key and value for each head, and their share of the compressed ones."""
        numbers = 2 * self.key_value_heads * self.head_dim
        return numbers + -(-numbers // self.layout.compression_stride)


def _checked_layout(options: SparseOptions) -> SparseLayout:
    layout = SparseLayout(**options.model_dump())
    for name in ("compression_block", "selection_block"):
        size = getattr(layout, name)
        if size % layout.compression_stride:
            raise ParameterError(
                f"parameter 'mixer.{name}' is {size}: "
                f"it must be a multiple of mixer.compression_stride {layout.compression_stride}"
            )
    if layout.compression_block > layout.selection_block:
        raise ParameterError(
            f"parameter 'mixer.compression_block' is {layout.compression_block}: "
            f"it must not exceed mixer.selection_block {layout.selection_block}"
        )
    return layout


COMPONENT = NativeSparseAttention
