"""Makes inline SVG of a matplotlib figure: small, without style attributes, in the page's own colours."""

import hashlib
import io
import re
from xml.etree import ElementTree

from markupsafe import Markup, escape
from matplotlib.figure import Figure

# matplotlib draws in placeholder colours, which become the page's variables
INK, MUTED, RULE = "#010101", "#010102", "#010103"
TIER_COLORS = {"high": "#010104", "medium": "#010105", "low": "#010106", None: "#010107"}
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117")
_VARIABLES = {
    INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", TIER_COLORS["high"]: "var(--bar-high)",
    TIER_COLORS["medium"]: "var(--bar-medium)", TIER_COLORS["low"]: "var(--bar-low)",
    TIER_COLORS[None]: "var(--bar-none)",
    **{color: f"var(--series-{position})" for position, color in enumerate(SERIES, start=1)},
}  # fmt: skip
_DROPPED = {"metadata", "style", "clipPath"}
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_GEOMETRY = ("d", "x", "y", "transform")
# what the root or the grammar says already
_DEFAULTS = {
    ("text", "font-size", "11px"), ("text", "text-anchor", "start"), ("text", "fill", "currentColor"),
    ("path", "stroke-linejoin", "round"), ("path", "stroke-linejoin", "miter"),
}  # fmt: skip


def inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Turns a figure into an SVG element with unique ids, an accessible name, and the page's colours and font.

    Styles become attributes, which a content security policy without inline styles allows. Nothing may be drawn outside
    the figure: clipping is left out.

    Args:
        figure: The figure; its size in inches is its size in points over 72.
        key: What the ids derive from; unique on the page.
        title: Accessible name.
        description: Accessible description.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # our own output: no entities, no outside references
    root = ElementTree.fromstring(stream.getvalue())
    box = root.attrib["viewBox"]
    prefix = "v" + hashlib.sha256(key.encode()).hexdigest()[:8]
    names = {
        element.attrib["id"]: f"{prefix}-{position}"
        for position, element in enumerate(found for found in root.iter() if _tag(found) == "path" and "id" in found.attrib)
    }  # fmt: skip
    body = "".join(_written(child, names) for child in root)
    return Markup(
        f'<svg viewBox="{box}" role="img" aria-labelledby="{prefix}-t {prefix}-d" stroke-linejoin="round" '
        'font-size="11px" fill="currentColor">'
        f'<title id="{prefix}-t">{escape(title)}</title><desc id="{prefix}-d">{escape(description)}</desc>{body}</svg>'
    )


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _written(element: ElementTree.Element, names: dict[str, str]) -> str:
    tag = _tag(element)
    if tag in _DROPPED:
        return ""
    attributes = _attributes(element, names)
    if tag == "path" and attributes.get("fill") == "none" and "stroke" not in attributes:
        return ""  # the background
    inside = str(escape((element.text or "").strip())) if tag == "text" else ""
    inside += "".join(_written(child, names) for child in element)
    if tag in ("g", "defs") and (not inside or (tag == "g" and not attributes)):
        return inside
    opening = tag + "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{opening}>{inside}</{tag}>" if inside else f"<{opening}/>"


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for qualified, value in element.attrib.items():
        name = qualified.rpartition("}")[2]
        if name == "style":
            declared = (declaration.partition(":") for declaration in value.split(";") if declaration.strip())
            attributes |= {one.strip(): other.strip() for one, _, other in declared if one.strip() != "font-family"}
        elif name == "id":
            attributes |= {"id": names[value]} if value in names else {}
        elif name == "href":
            attributes["href"] = f"#{names[value[1:]]}"
        elif name not in ("clip-path", "class"):
            attributes[name] = value
    for name in _GEOMETRY:
        if name in attributes:
            attributes[name] = _NUMBER.sub(
                lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), attributes[name]
            )
    if "d" in attributes:
        attributes["d"] = _compact(attributes["d"])
    if re.match(r"rotate\(-?0(\.0)? ", attributes.get("transform", "")):
        del attributes["transform"]
    for name in ("fill", "stroke"):
        if name in attributes:
            attributes[name] = _VARIABLES.get(attributes[name], attributes[name])
    if _tag(element) == "use":  # the marker that it repeats has the stroke
        attributes = {name: value for name, value in attributes.items() if not name.startswith("stroke")}
    return {name: value for name, value in attributes.items() if (_tag(element), name, value) not in _DEFAULTS}


def _compact(path: str) -> str:
    """Writes a path without what the grammar does not need: a line's command is implied after the first."""
    path = re.sub(r"\s+", " ", path).strip()
    path = re.sub(r"(?<=\d) L (?=-?\d)", " ", path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", path)
