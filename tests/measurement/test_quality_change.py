"""The comparison of two models of a size: paired, so that what both models share drops out."""

import math

import numpy as np
import pytest

from efficientllm.evaluation.perplexity import WindowLosses
from efficientllm.measurement.quality_change import accuracy_change, perplexity_change
from efficientllm.measurement.statistics import bootstrap_interval, paired_share_interval

DRAWS = np.random.default_rng(0)


def test_a_model_against_itself_changes_nothing() -> None:
    losses = WindowLosses(DRAWS.uniform(100, 300, 50), np.full(50, 64.0))
    found = perplexity_change(losses, losses, "another")
    assert (found.value, found.ci_low, found.ci_high) == (0, 0, 0)


def test_models_that_answer_alike_may_differ_on_other_examples() -> None:
    correct = DRAWS.integers(0, 2, 80).astype(float)
    found = accuracy_change(correct, correct, "another")
    assert found.value == 0
    assert found.ci_low is not None and found.ci_high is not None
    assert -3 < found.ci_low < -2 and found.ci_high == pytest.approx(-found.ci_low)


@pytest.mark.parametrize(("gained", "lost"), [(0.004, 0.004), (0.02, 0.05), (0.1, 0.02)])
def test_the_interval_of_an_accuracy_change_covers_it(gained: float, lost: float) -> None:
    draws = np.random.default_rng(1).choice([1.0, -1.0, 0.0], p=[gained, lost, 1 - gained - lost], size=(2000, 256))
    ends = [paired_share_interval((draw > 0).astype(float), (draw < 0).astype(float)) for draw in draws]
    covered = [found is not None and found[0] <= gained - lost <= found[1] for found in ends]
    assert np.mean(covered) > 0.93


def test_perplexity_change_is_the_difference_and_its_interval_is_paired() -> None:
    tokens = np.full(60, 64.0)
    reference = WindowLosses(tokens * DRAWS.uniform(2, 5, 60), tokens)  # windows differ far more than the two models
    worse = WindowLosses(reference.nats + tokens * DRAWS.normal(0.02, 0.01, 60), tokens)
    found = perplexity_change(worse, reference, "another")
    assert found.value == pytest.approx(math.exp(worse.mean) - math.exp(reference.mean))
    assert found.ci_low is not None and found.ci_high is not None
    assert 0 < found.ci_low < found.value < found.ci_high
    alone = bootstrap_interval(worse.nats / tokens, lambda draws: np.exp(draws.mean(axis=1)))
    assert found.ci_high - found.ci_low < (alone[1] - alone[0]) / 5
    assert found.n == 60


def test_accuracy_change_is_in_percentage_points() -> None:
    reference = np.array([1.0] * 60 + [0.0] * 40)
    correct = np.array([1.0] * 50 + [0.0] * 50)
    found = accuracy_change(correct, reference, "another")
    assert found.value == pytest.approx(-10)
    assert found.ci_low is not None and found.ci_high is not None
    assert -17 < found.ci_low < -10 < found.ci_high < -3
    assert (found.unit, found.direction) == ("%", "higher")
