"""Drawings: what they say, that they are text and not markup, and that they obey the page's policy."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm.reporting.figures import Line, Point, bars, clipped, lines, lines_axes, swatch, trade_off
from efficientllm.reporting.plot import MARKERS, axis_over, short, tick_labels
from efficientllm.reporting.text import DASH
from efficientllm.reporting.training import entering, thinned

NUMBERS = st.floats(1e-9, 1e9)


def texts(figure: str) -> list[str]:
    root = ElementTree.fromstring(figure)
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def test_the_steep_start_of_a_curve_is_cut_where_it_enters_the_panel() -> None:
    assert entering([0, 1, 2, 3], [8.0, 6.0, 2.0, 1.0], 4.0) == ([1.5, 2, 3], [4.0, 2.0, 1.0])
    assert entering([0, 1, 2], [3.0, 9.0, 2.0], 4.0) == ([0, 1, 2], [3.0, 4.0, 2.0]), "a peak ends at the edge"
    assert entering([0, 1], [9.0, 8.0], 4.0) == ([], [])


def some_points() -> list[Point]:
    return [
        Point("A", 0, 1.0, 5.0, (0.9, 1.1), (4.8, 5.2), True),
        Point("B", 1, 2.0, 3.0, None, None, True),
        Point("C", 2, 2.5, 4.0, (2.4, 2.6), None, False),
    ]


def a_trade_off(points: list[Point]) -> str:
    x = axis_over("energy", [end for point in points for end in (point.x, *(point.x_ends or ()))])
    y = axis_over("loss", [end for point in points for end in (point.y, *(point.y_ends or ()))], better_low=True)
    return trade_off("key", "title", "description", "heading", x, y, points)


@given(st.lists(st.none() | st.floats(0, 20), max_size=700))
def test_thinning_keeps_range_and_order(losses) -> None:
    tokens = [float(step) for step in range(len(losses))]
    positions, means = thinned(tokens, losses)
    logged = [loss for loss in losses if loss is not None]
    assert len(positions) == len(means) <= 40
    assert positions == sorted(positions)
    assert bool(means) == bool(logged)
    if logged:
        assert min(logged) - 1e-9 <= min(means) and max(means) <= max(logged) + 1e-9
    if 0 < len(logged) <= 40:
        assert means == logged


def test_thinning_leaves_out_what_has_no_place() -> None:
    assert thinned([None, 2.0, 3.0], [1.0, 2.0, None]) == ([2.0], [2.0])


@pytest.mark.parametrize("label", ["<b>&amp;</b>", "$x_1$", "]]>", "größe µ", "</svg><script>", '"onload='])
def test_labels_are_text(label) -> None:
    line = Line(0, [1.0, 2.0], [3.0, 2.5])
    figures = [
        bars("one", label, label, [label, "b"], [1.0, None], ["high", None]),
        lines("two", label, label, label, *lines_axes(label, label, [line]), [line]),
        a_trade_off([Point(label, 0, 1.0, 2.0, None, None, True), *some_points()]),
    ]
    for figure in figures:
        assert label in texts(figure)
        assert ElementTree.fromstring(figure).tag == "svg"


def test_bars_print_their_values_and_say_what_is_missing() -> None:
    figure = bars("k", "t", "PPL", ["a", "b", "c"], [1.0, 0.1, None], ["high", "low", None])
    assert {"1.00", "0.10", "PPL", "a", "b", "c", DASH} <= set(texts(figure))
    assert figure == bars("k", "t", "PPL", ["a", "b", "c"], [1.0, 0.1, None], ["high", "low", None])


def test_the_front_is_named_marked_and_joined() -> None:
    figure = a_trade_off(some_points())
    root = ElementTree.fromstring(figure)
    weights = {element.text: element.get("font-weight") for element in root.iter() if element.tag == "text"}
    assert (weights["A"], weights["B"], weights["C"]) == ("700", "700", None)
    hollow = [use for use in root.iter() if use.tag == "use" and use.get("fill-opacity") == "0"]
    assert len(hollow) == 1, "only C is off the front"
    assert figure.count("stroke-dasharray") == 1


def test_a_name_left_of_its_mark_ends_there_whatever_the_font() -> None:
    root = ElementTree.fromstring(a_trade_off([*some_points(), Point("MoE medium x8", 3, 9.0, 2.0, None, None, True)]))
    anchors = {element.text: element.get("text-anchor") for element in root.iter() if element.tag == "text"}
    assert anchors["MoE medium x8"] == "end", "it is at the right edge"


def test_up_and_left_is_better() -> None:
    axis = axis_over("loss", [1.0, 3.0], better_low=True)
    assert axis.share(1.0) > axis.share(3.0)
    assert axis_over("loss", [1.0, 3.0]).share(1.0) < axis_over("loss", [1.0, 3.0]).share(3.0)


def test_colours_follow_the_theme_and_styles_are_attributes() -> None:
    for figure in (a_trade_off(some_points()), bars("k", "t", "PPL", ["a"], [1.0], ["medium"])):
        assert "style=" not in figure, "the page's policy forbids inline styles"
        assert "currentColor" in figure and "var(--" in figure
        assert not re.search(r"#[0-9a-f]{6}\b", figure)
        ids = re.findall(r'\bid="([^"]+)"', figure)
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in re.findall(r'href="([^"]+)"', figure)} <= set(ids)


@given(st.lists(NUMBERS, min_size=1, max_size=9), st.booleans())
def test_everything_lies_within_its_axis(values, log) -> None:
    axis = axis_over("x", values, log=log)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    ticks = axis.marked()
    assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in ticks)
    assert all(one < other for one, other in pairwise(ticks))


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0, 5.0], [-1.0, 1.0], [1e-300, 1e300]])
def test_axes_of_awkward_values(values) -> None:
    for log in (False, True):
        axis = axis_over("x", values, log=log)
        assert axis.low < axis.high
        assert all(0 <= axis.share(value) <= 1 for value in values)
        axis.marked()


def test_series_differ_in_shape_beyond_their_colours() -> None:
    marks = [str(swatch(series)) for series in range(len(MARKERS))]
    assert len(set(marks)) == len(MARKERS)
    assert len({re.search(r' d="([^"]+)"', mark).group(1) for mark in marks}) == len(MARKERS)


def test_ticks_lose_no_digit_and_short_ones_get_none() -> None:
    assert [text for _, text in tick_labels([19.35, 19.5, 19.65, 19.8])] == ["19.35", "19.5", "19.65", "19.8"]
    assert [text for _, text in tick_labels([0.0, 999.5, 1000.5])] == ["0", "999.5", "1.0005k"]
    assert [text for _, text in tick_labels([0.1 + 0.2, 1 / 3])] == ["0.3", "0.333"], "noise is no digit"


def test_short_numbers_and_names() -> None:
    assert [short(value) for value in (0.05, 2000, 1.5e6, 3e9, -4)] == ["0.05", "2k", "1.5M", "3G", "−4"]  # noqa: RUF001
    assert clipped("x" * 200, 10) == "x" * 9 + "…"
