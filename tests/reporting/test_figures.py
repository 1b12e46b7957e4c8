"""The curves' thinning, and labels that would break the drawing."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.reporting.figures import Bars, Panel, normalized_bars, thinned, training_curves
from efficientllm.telemetry import Curve


@given(st.lists(st.none() | st.floats(0, 20), max_size=700))
def test_thinning_keeps_range_and_order(losses) -> None:
    tokens = [float(step) for step in range(len(losses))]
    positions, means = thinned(tokens, losses)
    logged = [loss for loss in losses if loss is not None]
    assert len(positions) == len(means) <= 100
    assert positions == sorted(positions)
    assert bool(means) == bool(logged)
    if logged:
        assert min(logged) - 1e-9 <= min(means) and max(means) <= max(logged) + 1e-9
    if 0 < len(logged) <= 100:
        assert means == logged


@pytest.mark.parametrize("label", ["<b>&amp;</b>", "$x_1$", "]]>", "größe µ"])
def test_labels_are_text(label) -> None:
    curve = Curve([1.0, 2.0], [3.0, None], [None, 2.5], [None, 1.0], [None, None])
    figures = [
        normalized_bars("one", label, label, [label, "b"], [Bars("PPL", [1.0, None], ["high", None])]),
        training_curves("two", label, label, [Panel(label, [(label, curve)])]),
    ]
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert sum(label in (element.text or "") for element in root.iter()) >= 3


def test_bars_print_their_values() -> None:
    figure = normalized_bars("k", "t", "d", ["a", "b"], [Bars("PPL", [1.0, 0.1], ["high", "low"])])
    texts = [element.text for element in ElementTree.fromstring(figure).iter() if element.tag.endswith("}text")]
    assert {"1.00", "0.10", "PPL", "a", "b"} <= set(texts)
    assert figure == normalized_bars("k", "t", "d", ["a", "b"], [Bars("PPL", [1.0, 0.1], ["high", "low"])])
