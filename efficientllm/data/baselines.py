"""What counting reaches on the test split: the floor that a trained model must beat."""

import math
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Baseline:
    """A count-based model's quality on the test split.

    Args:
        perplexity: Per token.
        bits_per_byte: Comparable across tokenizers.
        method: How the model is estimated.
    """

    perplexity: float
    bits_per_byte: float
    method: str


def baselines(
    train: np.ndarray, test: np.ndarray, *, vocabulary_size: int, test_bytes: int
) -> dict[str, dict[str, object]]:
    """Estimates a unigram and a bigram model on the training tokens and evaluates both on the test tokens.

    Both predict the same targets as the language models do: every token of the test split but the first.

    Args:
        train: Tokens of the training split.
        test: Tokens of the test split.
        vocabulary_size: Number of entries V.
        test_bytes: UTF-8 bytes of the test documents.

    Returns:
        `unigram` and `bigram`, each with perplexity, bits_per_byte and method.
    """
    train, test = train.astype(np.int64), test.astype(np.int64)
    nats = {
        "unigram": -np.log(_unigram(train, vocabulary_size)[test[1:]]),
        "bigram": -np.log(_kneser_ney(train, test, vocabulary_size)),
    }
    methods = {
        "unigram": "relative frequency, add-one smoothing",
        "bigram": "interpolated Kneser-Ney, one discount; add-one smoothing of the continuation counts",
    }
    return {
        name: asdict(Baseline(math.exp(values.mean()), float(values.sum()) / math.log(2) / test_bytes, methods[name]))
        for name, values in nats.items()
    }


def _unigram(train: np.ndarray, vocabulary_size: int) -> np.ndarray:
    counts = np.bincount(train, minlength=vocabulary_size) + 1.0
    return np.asarray(counts / counts.sum())


def _kneser_ney(train: np.ndarray, test: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """Probability of each test token but the first, given the one before it.

    Kneser and Ney 1995, interpolated as in Chen and Goodman 1999 (equation 3 and section 4.1.6), with the discount
    D = n1 / (n1 + 2 n2) of n1 bigrams seen once and n2 seen twice.
    """
    bigrams, counts = np.unique(train[:-1] * vocabulary_size + train[1:], return_counts=True)
    previous, following = bigrams // vocabulary_size, bigrams % vocabulary_size
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    context_total = np.bincount(previous, weights=counts, minlength=vocabulary_size)
    context_types = np.bincount(previous, minlength=vocabulary_size)
    continuation = np.bincount(following, minlength=vocabulary_size) + 1.0
    continuation /= continuation.sum()

    context, target = test[:-1], test[1:]
    wanted = context * vocabulary_size + target
    place = np.minimum(np.searchsorted(bigrams, wanted), len(bigrams) - 1)
    seen = np.where(bigrams[place] == wanted, counts[place] - discount, 0.0)
    total = context_total[context]
    known = total > 0
    backoff = np.where(known, discount * context_types[context], 1.0)
    return np.asarray((seen + backoff * continuation[target]) / np.where(known, total, 1.0))
