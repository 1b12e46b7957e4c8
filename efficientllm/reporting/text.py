"""Numbers as people read them: significant digits, prefixes, intervals."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from efficientllm.ranking.compare import Compared
from efficientllm.ranking.results import Result

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DASH = "\N{EN DASH}"
"""Between the ends of a span, and in place of a value that is missing."""

MINUS = "\N{MINUS SIGN}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_DIGITS = 3
_MOST_DIGITS = 5


@dataclass(frozen=True)
class Scale:
    """A unit's prefix, one for a whole column: shown value = stored value x factor."""

    factor: float
    unit: str


# the unit below each unit, and how many of it make one
_SMALLER: dict[str, tuple[tuple[str, float], ...]] = {
    "s": (("ms", 1e3), ("µs", 1e6)),
    "J/token": (("mJ/token", 1e3), ("µJ/token", 1e6)),
    "GiB": (("MiB", 1024.0), ("KiB", 1024.0**2)),
    "W": (("mW", 1e3),),
}


def column_scale(values: Iterable[float | None], unit: str) -> Scale:
    """Chooses the prefix under which a column's median is 0.1 or more.

    Args:
        values: The column's stored values.
        unit: Their unit.

    Returns:
        The first prefix that is small enough; the stored unit where it has no prefixes.
    """
    sizes = [abs(value) for value in values if value]
    chosen = Scale(1.0, unit)
    for smaller, factor in _SMALLER.get(unit, ()):
        if not sizes or median(sizes) * chosen.factor >= 0.1:
            break
        chosen = Scale(factor, smaller)
    return chosen


def number(value: float, digits: int = _DIGITS) -> str:
    """Renders a number with so many significant digits, such as "0.0123", "1,230" or "1.23e-7" with a raised exponent."""
    return _with_decimals(value, _decimals(value, digits))


def estimate(value: float, low: float | None = None, high: float | None = None) -> tuple[str, str | None]:
    """Renders a value and its interval with the same decimals: three digits, or up to five where these show its width.

    Returns:
        The value's text, and the interval's such as "8.21-8.27" with a long dash, or "-1 to 2", or None where there is none.
    """
    digits = _DIGITS
    if low is None or high is None:
        return number(value), None
    if high > low and value:
        needed = math.floor(math.log10(abs(value))) - math.floor(math.log10(high - low)) + 1
        digits = needed if _DIGITS < needed <= _MOST_DIGITS else _DIGITS
    decimals = _decimals(value, digits)
    return _with_decimals(value, decimals), _joined(_with_decimals(low, decimals), _with_decimals(high, decimals))


def scaled(found: Result | Compared, scale: Scale) -> tuple[float, float | None, float | None]:
    """Returns a figure's value and the ends of its interval in a column's unit.

    Raises:
        ValueError: The figure has no value.
    """
    if found.value is None:
        raise ValueError(f"{found} has no value")
    low = None if found.ci_low is None else found.ci_low * scale.factor
    high = None if found.ci_high is None else found.ci_high * scale.factor
    return found.value * scale.factor, low, high


def scaled_estimate(found: Result | Compared, scale: Scale) -> tuple[str, str | None]:
    """Renders a figure's value and interval in a column's unit; see `estimate`.

    Raises:
        ValueError: The figure has no value.
    """
    return estimate(*scaled(found, scale))


def _decimals(value: float, digits: int) -> int:
    """Decimals after the point for so many significant digits; negative to the left of it."""
    # the exponent after rounding: 99.96 is 100 in three digits, not 100.0
    return digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])


def _joined(low: str, high: str) -> str:
    """Joins the ends of a span; after a minus sign a dash would read as another one."""
    return f"{low}{' to ' if low.startswith(MINUS) else DASH}{high}"


def _with_decimals(value: float, decimals: int) -> str:
    rounded = round(value, decimals) + 0.0  # no minus before a zero
    if rounded and not 1e-4 <= abs(rounded) < 1e7:
        exponent = math.floor(math.log10(abs(rounded)))
        mantissa = f"{rounded / 10.0**exponent:.{max(0, min(decimals + exponent, _MOST_DIGITS))}f}"
        return f"{mantissa}{_TIMES}10{str(exponent).translate(_SUPERSCRIPTS)}".replace("-", MINUS)
    return f"{rounded:,.{max(0, decimals)}f}".replace("-", MINUS)


def span(values: Iterable[float | int], unit: str = "") -> str:
    """Renders the least and the greatest of some values, such as "0.5-1.2 s", or "2" where they are equal."""
    found = sorted(values)
    low, high = (str(end).replace("-", MINUS) if isinstance(end, int) else number(end) for end in (found[0], found[-1]))
    return f"{low if low == high else _joined(low, high)} {unit}".strip()


def percent(share: float | None) -> str | None:
    """Renders a share of draws: whole percent, but never 0 or 100 % unless it is."""
    if share is None:
        return None
    exact = round(share, 9)  # shares that are added up miss 1 by the last digit
    if exact in (0.0, 1.0) or 0.005 <= exact <= 0.995:
        return f"{100 * exact:.0f} %"
    return f"{min(max(100 * exact, 0.1), 99.9):.1f} %"


def listing(items: Iterable[str]) -> str:
    """Joins names as prose does: "a", "a and b", "a, b and c"."""
    names = list(items)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def identifier(*parts: str) -> str:
    """Builds an HTML id from names, such as "row-tune-small-lora"."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower()
