"""Blocks that the backward pass computes a second time instead of keeping their activations (Chen et al. 2016, arXiv 1604.06174).

The second computation has to draw the random numbers that the first drew. PyTorch's checkpoints remember the generator's state
for that, which passes through the host, and so cannot be in a CUDA graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

Contexts: TypeAlias = tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]


class TwinGenerators:
    """Two generators for each block, always in the same state: one for the first computation, one for the second.

    Both draw equally much in every pass, so nothing need be remembered from one to the other. Their seeds follow from PyTorch's.

    Args:
        blocks: Number of blocks.
        device: The CUDA device that they compute on.
    """

    def __init__(self, blocks: int, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._default = torch.cuda.default_generators[index]
        seeds = torch.randint(2**62, (blocks,), generator=torch.Generator().manual_seed(torch.initial_seed())).tolist()
        firsts = [torch.Generator(torch.device("cuda", index)).manual_seed(seed) for seed in seeds]
        self._pairs = [(first, first.clone_state()) for first in firsts]

    def all(self) -> list[torch.Generator]:
        """Lists the generators, which a CUDA graph has to know beforehand."""
        return [generator for pair in self._pairs for generator in pair]

    def contexts(self, block: int) -> Callable[[], Contexts]:
        """Returns what a checkpoint takes as its `context_fn`."""
        first, second = self._pairs[block]
        return lambda: (self._drawing_from(first), self._drawing_from(second))

    @contextlib.contextmanager
    def _drawing_from(self, generator: torch.Generator) -> Iterator[None]:
        before = self._default.graphsafe_get_state()
        self._default.graphsafe_set_state(generator)
        try:
            yield
        finally:
            self._default.graphsafe_set_state(before)


def recomputing(twins: TwinGenerators | None, *, random: bool) -> Callable[..., Any]:
    """Returns a function that calls a block, given its index, itself and its inputs, and keeps none of its activations.

    Args:
        twins: The blocks' own generators; None where they draw from the device's.
        random: Whether the blocks draw any random numbers.
    """

    def recomputed(index: int, block: Callable[..., Any], *inputs: Any) -> Any:
        if twins is None:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=random)
        with set_checkpoint_early_stop(False):  # or the second computation might draw less
            return checkpoint(
                block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=twins.contexts(index)
            )

    return recomputed
