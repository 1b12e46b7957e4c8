import math

import numpy as np
import pytest

from efficientllm.data.baselines import baselines


def test_unigram_by_hand():
    train, test = np.array([0, 0, 0, 1], np.uint16), np.array([1, 0, 1], np.uint16)
    found = baselines(train, test, vocabulary_size=3, test_bytes=4)["unigram"]
    nats = -math.log(4 / 7) - math.log(2 / 7)  # add one: (3 + 1) / 7 and (1 + 1) / 7
    assert found["perplexity"] == pytest.approx(math.exp(nats / 2))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 4)


def test_kneser_ney_by_hand():
    # bigrams 01 x2, 10 x1, 12 x1, 20 x1: n1 = 3, n2 = 1, D = 3/5; continuation counts 2, 1, 1, add one, of 7
    train = np.array([0, 1, 0, 1, 2, 0], np.uint16)
    test = np.array([0, 1, 1], np.uint16)
    first = (2 - 0.6) / 2 + 0.6 * 1 / 2 * 2 / 7  # 0 -> 1, seen twice of two, one type follows 0
    second = 0.6 * 2 / 2 * 2 / 7  # 1 -> 1, unseen; two types follow 1
    found = baselines(train, test, vocabulary_size=3, test_bytes=1)["bigram"]
    assert found["perplexity"] == pytest.approx((first * second) ** -0.5)


def test_bigram_probabilities_sum_to_one_after_every_context():
    generator = np.random.default_rng(0)
    train = generator.integers(0, 9, 60).astype(np.uint16)
    for context in range(10):  # 9 never occurs
        probabilities = [
            1
            / baselines(train, np.array([context, token], np.uint16), vocabulary_size=10, test_bytes=1)["bigram"][
                "perplexity"
            ]
            for token in range(10)
        ]
        assert sum(probabilities) == pytest.approx(1)


def test_context_helps_where_there_is_some():
    tokens = np.tile(np.arange(7), 50).astype(np.uint16)
    found = baselines(tokens, tokens, vocabulary_size=7, test_bytes=100)
    assert found["bigram"]["perplexity"] < 1.1 < 6.9 < found["unigram"]["perplexity"]
