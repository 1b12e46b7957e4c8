"""The order of training windows and examples, as a pure function of the seed and the step."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_positions(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Returns the positions of a batch's windows or examples.

    Each epoch is a fresh permutation; a batch that reaches past an epoch's end goes on in the next one, so every
    position is seen equally often.

    Args:
        count: Windows or examples in all.
        batch_size: How many a batch holds.
        step: Index of the batch, from 0.
        seed: Seed of the order.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(count, seed, position // count)[position % count]) for position in positions]
