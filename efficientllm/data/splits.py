"""Whole documents into training, validation and test split."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from efficientllm.data.document import Document
from efficientllm.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SMALLEST_STRATUM = 3
_Name = TypeVar("_Name")


def split_documents(
    documents: Sequence[Document], *, validation_fraction: float, test_fraction: float, seed: int
) -> dict[Split, list[Document]]:
    """Divides documents by their bytes, and keeps whole documents (and the documents of one unit) together.

    The split is drawn within each stratum. For the presidential addresses a stratum is an era of 40 years: the
    language changes over two centuries, so that a split drawn over all of them could test on an era that it hardly trained on.
    Within a stratum, units are taken in an order shuffled by the seed for as long as each brings the split nearer to
    its share; the rest is for training. A stratum of fewer than three units goes to training whole. Where that leaves
    nothing for training, as beside one document of nearly all bytes, the largest unit is for training, and the others
    are divided between validation and test.

    Args:
        documents: The corpus.
        validation_fraction: Share of the UTF-8 bytes for validation.
        test_fraction: Share of the UTF-8 bytes for testing.
        seed: Decides the order.

    Returns:
        The documents of each split, in the corpus' order.

    Raises:
        DataError: There are too few documents for three splits.
    """
    units: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for document in documents:
        units[document.stratum][document.unit] += len(document.text.encode())
    generator = np.random.default_rng(seed)
    assigned: dict[tuple[str, str], Split] = {}
    for stratum, sizes in sorted(units.items()):
        if len(sizes) < _SMALLEST_STRATUM:
            continue
        names = sorted(sizes)
        waiting = [names[position] for position in generator.permutation(len(names))]
        total = sum(sizes.values())
        shares: tuple[tuple[Split, float], ...] = (("test", test_fraction), ("validation", validation_fraction))
        for split, fraction in shares:
            chosen = _nearest_share([(name, sizes[name]) for name in waiting], fraction * total)
            assigned |= {(stratum, name): split for name in chosen}
            waiting = [name for name in waiting if name not in chosen]
    every = {(stratum, name): size for stratum, sizes in units.items() for name, size in sizes.items()}
    if len(assigned) == len(every) >= _SMALLEST_STRATUM:
        assigned = _beside_the_largest(every, test_fraction / (test_fraction + validation_fraction), generator)
    divided: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        divided[assigned.get((document.stratum, document.unit), "train")].append(document)
    if empty := [split for split in SPLITS if not divided[split]]:
        raise DataError(
            f"the corpus has {len(documents)} documents, too few for whole ones in each of train, validation and test "
            f"({', '.join(empty)} would be empty): give at least {_SMALLEST_STRATUM}, for example a JSONL with one "
            "document a line"
        )
    return divided


def _beside_the_largest(
    sizes: dict[tuple[str, str], int], test_share: float, generator: np.random.Generator
) -> dict[tuple[str, str], Split]:
    """Divides all units but the largest between test and validation."""
    names = sorted(sizes)
    order = [names[position] for position in generator.permutation(len(names))]
    order.remove(max(names, key=lambda name: sizes[name]))
    target = test_share * sum(sizes[name] for name in order)
    # the last is for validation, whatever the share
    test = _nearest_share([(name, sizes[name]) for name in order[:-1]], target)
    return {name: "test" if name in test else "validation" for name in order}


def _nearest_share(units: list[tuple[_Name, int]], target: float) -> set[_Name]:
    """Takes units in order while each brings the sum nearer to the target, and always at least one."""
    chosen: set[_Name] = set()
    filled = 0
    for name, size in units:
        if abs(filled + size - target) < abs(filled - target):
            chosen.add(name)
            filled += size
    return chosen or {min(units, key=lambda unit: unit[1])[0]}
