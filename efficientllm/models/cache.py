"""The decoding cache: every layer's preallocated state, and how far it is filled."""

from dataclasses import dataclass, field

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.interfaces import LayerState


@dataclass(frozen=True)
class BlockState:
    """State of one block.

    Args:
        mixer: The mixer's tensors.
        feedforward: The feed-forward layer's tensors; most keep none.
    """

    mixer: LayerState
    feedforward: LayerState

    def parts(self) -> tuple[LayerState, LayerState]:
        """Both groups of tensors."""
        return self.mixer, self.feedforward


@dataclass
class DecodingCache:
    """What a decoder remembers of a batch of sequences; made by `Decoder.new_cache`.

    Args:
        blocks: One state per block.
        batch_size: Number of sequences.
        max_length: Tokens that fit.
        length: Tokens that are in it, padding included.
        padding_mask_bs: True where a cached token is real, `[B, max_length]`; None as long as none is padding.
    """

    blocks: list[BlockState]
    batch_size: int
    max_length: int
    length: int = 0
    padding_mask_bs: torch.Tensor | None = field(default=None)

    def check_room(self, batch_size: int, tokens: int) -> None:
        """Checks that a chunk fits.

        Raises:
            ParameterError: The batch differs from the cache's, or the cache is full.
        """
        if batch_size != self.batch_size:
            raise ParameterError(f"a cache for {self.batch_size} sequences cannot take a batch of {batch_size}")
        if self.length + tokens > self.max_length:
            raise ParameterError(
                f"the cache holds {self.length} of {self.max_length} tokens: {tokens} more do not fit; "
                "make it with a larger max_length"
            )

    def reorder(self, indices: torch.Tensor) -> None:
        """Replaces sequence i by sequence `indices[i]`, in place (beam search).

        Args:
            indices: One index per sequence, on the cache's device.
        """
        for block in self.blocks:
            for state in block.parts():
                for tensor in state.values():
                    tensor.copy_(tensor.index_select(0, indices))
        if self.padding_mask_bs is not None:
            self.padding_mask_bs = self.padding_mask_bs.index_select(0, indices)

    def clear(self) -> None:
        """Forgets everything, so that other sequences can follow in the same memory."""
        for block in self.blocks:
            for state in block.parts():
                for tensor in state.values():
                    tensor.zero_()
        self.length, self.padding_mask_bs = 0, None

    def take(self, indices: torch.Tensor) -> "DecodingCache":
        """Returns a new cache of some sequences, each as often as it is named.

        Args:
            indices: One index per sequence of the new cache, on the cache's device.
        """

        def taken(state: LayerState) -> LayerState:
            return {name: tensor.index_select(0, indices) for name, tensor in state.items()}

        blocks = [BlockState(taken(block.mixer), taken(block.feedforward)) for block in self.blocks]
        mask = None if self.padding_mask_bs is None else self.padding_mask_bs.index_select(0, indices)
        return DecodingCache(blocks, len(indices), self.max_length, self.length, mask)

    def nbytes(self) -> int:
        """Returns the allocated bytes of all layers' states."""
        return sum(tensor.nbytes for block in self.blocks for state in block.parts() for tensor in state.values())
