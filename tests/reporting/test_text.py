# ruff: noqa: RUF001 - the signs under test are typographic
"""Numbers as people read them."""

import pytest

from efficientllm.reporting.text import column_scale, estimate, identifier, listing, number, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"), (1.0, "1.00"), (0.012345, "0.0123"), (8.2345, "8.23"), (1234.5, "1,230"), (99.96, "100"),
        (-3.14159, "−3.14"), (1.234e-7, "1.23×10⁻⁷"), (1.5e9, "1.50×10⁹"), (16, "16.0"),
    ],
)  # fmt: skip
def test_three_significant_digits(value, text) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((8.2345,), ("8.23", None)),
        ((8.2345, 8.1, 8.4), ("8.23", "8.10–8.40")),
        ((8.2345, 8.2333, 8.2359), ("8.235", "8.233–8.236")),  # as many digits as show the interval's width
        ((8.2345, 8.2342, 8.2347), ("8.2345", "8.2342–8.2347")),  # up to five
        ((8.2345, 8.23449999, 8.23450001), ("8.23", "8.23–8.23")),  # and no more where these would not show it
        ((27400.0, 26900.0, 27900.0), ("27,400", "26,900–27,900")),
        ((0.0, 0.0, 0.0), ("0.00", "0.00–0.00")),
        ((-0.2, -7.04, 6.64), ("−0.200", "−7.040 to 6.640")),  # a dash would read as a minus sign
        ((-2.0, -3.0, -1.0), ("−2.00", "−3.00 to −1.00")),
        ((1.0, -0.001, 2.0), ("1.00", "0.00–2.00")),  # zero has no sign
    ],
)
def test_intervals_share_the_decimals_of_their_value(arguments, texts) -> None:
    assert estimate(*arguments) == texts


def test_one_prefix_per_column() -> None:
    assert column_scale([0.082, 0.05, 0.3, None], "s").unit == "ms"
    assert column_scale([0.82, 0.5, 0.3], "s").unit == "s"
    assert column_scale([2e-5], "s").unit == "µs"
    assert column_scale([0.01], "GiB").factor == 1024
    assert column_scale([1e-9], "token/s").unit == "token/s"
    assert column_scale([None], "s").unit == "s"


def test_words() -> None:
    assert [listing([]), listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]  # fmt: skip
    assert (span([1.0, 1.0], "s"), span([2, 5]), span([0.5, 1.25], "s")) == ("1.00 s", "2–5", "0.500–1.25 s")
    assert (span([-2, 5]), span([-1.5, 2.0], "s")) == ("−2 to 5", "−1.50 to 2.00 s")
    assert identifier("row", "tune-small", 'x" onload=') == "row-tune-small-x-onload"
