"""The weighted score."""

import pytest

from efficientllm.errors import ParameterError
from efficientllm.ranking.score import parse_weights, weighted_scores

NORMALIZED = {"loss": {"a": 1.0, "b": 0.1}, "latency": {"a": 0.1, "b": 1.0}, "energy": {"a": None, "b": 1.0}}


def test_weighted_mean() -> None:
    assert weighted_scores(NORMALIZED, {"loss": 3, "latency": 1}) == pytest.approx({"a": 0.775, "b": 0.325})
    assert weighted_scores(NORMALIZED, {"loss": 1, "latency": 0}) == pytest.approx({"a": 1.0, "b": 0.1})


def test_scale_of_the_weights_does_not_matter() -> None:
    assert weighted_scores(NORMALIZED, {"loss": 300, "latency": 100}) == pytest.approx({"a": 0.775, "b": 0.325})


def test_a_row_that_lacks_a_counted_metric_has_no_score() -> None:
    assert weighted_scores(NORMALIZED, {"loss": 1, "energy": 1}) == {"a": None, "b": pytest.approx(0.55)}
    assert weighted_scores(NORMALIZED, {"loss": 1, "energy": 0})["a"] == 1.0


def test_a_metric_that_no_row_has_does_not_count() -> None:
    empty = NORMALIZED | {"mfu": {"a": None, "b": None}}
    assert weighted_scores(empty, {"loss": 1, "mfu": 9}) == pytest.approx({"a": 1.0, "b": 0.1})
    assert weighted_scores({"mfu": {"a": None}}, {"mfu": 1}) == {"a": None}


def test_weights_that_are_not_named_are_one() -> None:
    assert parse_weights(" loss = 2 ,energy=0", NORMALIZED) == {"loss": 2.0, "latency": 1.0, "energy": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss", "'loss' is not metric=number"),
        ("", "'' is not metric=number"),
        ("loss=x", "'loss=x' is not metric=number"),
        ("loss=-1", "with a number from 0 to 1e"),
        ("loss=nan", "'loss=nan' is not"),
        ("loss=inf", "'loss=inf' is not"),
        ("=2", "'=2' is not"),
        ("los=2", "unknown metric in the weights 'los'; did you mean 'loss'?"),
        ("loss=2,loss=3", "'loss' is named twice"),
        ("loss=0,latency=0,energy=0", "all are 0"),
    ],
)
def test_faults(text, message) -> None:
    with pytest.raises(ParameterError, match="weights") as caught:
        parse_weights(text, NORMALIZED)
    assert message in str(caught.value)
