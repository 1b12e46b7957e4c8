"""Native sparse attention (NSA; Yuan et al. 2025, arXiv 2502.11089).

Each query attends in three ways, each with keys and values of its own: to compressed blocks of tokens, to the tokens of
a few blocks which the compressed scores choose, and to the latest tokens. A sigmoid gate weighs each branch in each
head (their equation 5).

Where the paper leaves a choice: the map phi that compresses a block (equation 7) is a two-layer perceptron shared by
all heads; it sees keys before their rotation, and a compressed key is rotated as the last token of its block.
"""

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.attention import rotate
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import LayerState, Mixer, Rotation, Span
from efficientllm.models.sparse_attention import Branches, Memory, SparseLayout, sparse_attention


class SparseOptions(Section):
    """Parameters of the layer; the defaults are the paper's."""

    compression_block: int = Field(default=32, ge=1, description="tokens that one compressed key stands for")
    compression_stride: int = Field(default=16, ge=1, description="tokens between the starts of compression blocks")
    selection_block: int = Field(default=64, ge=1, description="tokens of a selected block")
    selected_blocks: int = Field(default=16, ge=3, description="blocks per query: the first, the latest two, the best")
    sliding_window: int = Field(default=512, ge=1, description="latest tokens that the sliding branch sees")


class BlockCompression(nn.Module):
    """Maps the l keys (or values) of a block to one: W2 silu(W1 [x_1 + e_1, ..., x_l + e_l] + b1) + b2 (equation 7).

    Args:
        block: l.
        width: D, width of a key, of the hidden layer and of the result.
    """

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


class _Chunk(NamedTuple):
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
        from efficientllm.models.sparse_kernels import triton_is_missing

        return "need Triton, which is not installed" if triton_is_missing() else None

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
        chunk = _place(span, hidden_btc.device)
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
            raw_k, later_k, v = (_take(x, chunk.order_bt) for x in (raw_k, later_k, v))
            if rotation is not None:
                rotation = (_take(rotation[0], chunk.order_bt), _take(rotation[1], chunk.order_bt))
        raw_v, later_v = v.split([shared, 2 * shared], dim=2)
        keys = self._extend("keys", self.key_compression, raw_k, later_k, chunk, rotation, state)
        values = self._extend("values", self.value_compression, raw_v, later_v, chunk, None, state)
        pairs = (part for pair in zip(keys, values, strict=True) for part in pair)
        window_start = chunk.before - (keys[2].shape[1] - span.length)
        branches = self._branches(q, Memory(*pairs, window_start), chunk)
        gates = self.gate_proj(hidden_btc).sigmoid().unflatten(-1, (3, self.heads, 1)).unbind(dim=2)
        mixed = gates[0] * branches.compressed + gates[1] * branches.selected + gates[2] * branches.sliding
        return self.o_proj(mixed.flatten(2))

    def _branches(self, q_bthd: torch.Tensor, memory: Memory, chunk: _Chunk) -> Branches:
        """Runs the kernels on whole sequences; steps of decoding and padded sequences take the plain path."""
        whole = chunk.fresh and chunk.order_bt is None and chunk.length > 1
        if whole and self.runs_fast(q_bthd.device):
            from efficientllm.models.sparse_kernels import fast_sparse_attention

            return fast_sparse_attention(q_bthd, memory, self.layout)
        start = chunk.start if chunk.order_bt is None else None
        return sparse_attention(q_bthd, memory, chunk.positions_bt, start, self.layout)

    def _extend(
        self,
        name: str,
        compression: BlockCompression,
        raw_btkd: torch.Tensor,
        later_btkd: torch.Tensor,
        chunk: _Chunk,
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
        recent, window = state[f"recent_{name}"], state[f"sliding_{name}"]
        tail, reach = recent.shape[1], window.shape[1]
        raw_btkd = torch.cat((recent.to(raw_btkd.dtype), raw_btkd), dim=1)
        near = torch.cat((window.to(sliding.dtype), sliding), dim=1)
        compressed = self._compress(compression, raw_btkd, tail, chunk, rotation)
        recent.copy_(_take(raw_btkd, chunk.added, tail))
        window.copy_(_take(near, chunk.added, reach))
        _put(state[f"compressed_{name}"], _complete(self.layout, chunk.before), compressed)
        _put(state[f"selected_{name}"], chunk.before, selected)
        if chunk.fresh:
            return compressed, selected, sliding
        end = chunk.start + chunk.length
        blocks = self.layout.compressed(end)
        return state[f"compressed_{name}"][:, :blocks], state[f"selected_{name}"][:, :end], near

    def _compress(
        self,
        compression: BlockCompression,
        raw_bskd: torch.Tensor,
        lead: int,
        chunk: _Chunk,
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
        done = _complete(layout, chunk.before)
        count = end - done if isinstance(done, int) else min(end, -(-chunk.length // stride))
        if count == 0:
            return raw_bskd[:, :0]
        overlap = layout.compression_block // stride
        first = done * stride - chunk.before
        strides = _take(raw_bskd, first + lead, (count - 1 + overlap) * stride).unflatten(1, (-1, stride))
        compressed = compression(torch.cat([strides[:, shift : shift + count] for shift in range(overlap)], dim=2))
        if rotation is None:
            return compressed
        last = first + layout.compression_block - 1
        at_ends = [_take(x, last, (count - 1) * stride + 1)[:, ::stride] for x in rotation]
        return rotate(compressed, (at_ends[0], at_ends[1]))

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates keys and values of each branch, and those that no complete block holds yet, `[B, entries, K, D]`."""
        entries = {
            "compressed": self.layout.compressed(max_length)
            + 1,  # a spare one for blocks that padding leaves incomplete
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
        branches: (context - l) / d + 1 compressed ones, at most n l' selected and at most a window of sliding ones. The
        importance of blocks is a sum of the compressed branch's weights and multiplies nothing.
        """
        layout = self.layout
        projections = (self.q_proj, self.k_proj, self.v_proj, self.gate_proj, self.o_proj)
        flops = 2.0 * sum(projection.weight.numel() for projection in projections)
        both = self.key_compression.flops_per_block() + self.value_compression.flops_per_block()
        flops += self.key_value_heads * both / layout.compression_stride
        keys = max(0.0, (context - layout.compression_block) / layout.compression_stride + 1)
        keys += min(context, layout.selected_blocks * layout.selection_block) + min(context, layout.sliding_window)
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


def _place(span: Span, device: torch.device) -> _Chunk:
    """Finds where a pass stands in its sequences, which start at their first real token."""
    if span.key_real_bs is None or span.padding_mask_bt is None or span.positions_bt is None:
        positions = torch.arange(span.start, span.end, device=device)[None]
        return _Chunk(span.start, span.length, span.start, span.length, None, positions)
    real = span.padding_mask_bt
    before = 0 if span.start == 0 else span.key_real_bs[:, : span.start].sum(dim=1)
    order = (~real).byte().argsort(dim=1, stable=True)
    return _Chunk(span.start, span.length, before, real.sum(dim=1), order, span.positions_bt)


def _complete(layout: SparseLayout, tokens: int | torch.Tensor) -> Any:
    """Number of complete compression blocks, of one length or of one per sequence."""
    if isinstance(tokens, int):
        return layout.compressed(tokens)
    return ((tokens - layout.compression_block) // layout.compression_stride + 1).clamp_min(0)


def _take(x_bs: torch.Tensor, first: int | torch.Tensor, length: int | None = None) -> torch.Tensor:
    """Returns `length` entries from `first` on, one number or one per sequence `[B]`, or the entries `first` `[B, T]`."""
    if isinstance(first, int):
        assert length is not None
        return x_bs[:, first : first + length]
    if length is not None:
        first = first[:, None] + torch.arange(length, device=first.device)
    sequence = torch.arange(x_bs.shape[0], device=first.device)[:, None]
    return x_bs[sequence, first.clamp(0, x_bs.shape[1] - 1)]


def _put(store_bs: torch.Tensor, first: int | torch.Tensor, x_bt: torch.Tensor) -> None:
    """Writes entries from `first` on; what would fall behind the store lands on its last entry."""
    if isinstance(first, int):
        store_bs[:, first : first + x_bt.shape[1]] = x_bt
        return
    place = first[:, None] + torch.arange(x_bt.shape[1], device=first.device)
    sequence = torch.arange(x_bt.shape[0], device=first.device)[:, None]
    store_bs[sequence, place.clamp_max(store_bs.shape[1] - 1)] = x_bt.to(store_bs.dtype)


COMPONENT = NativeSparseAttention
