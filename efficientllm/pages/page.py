"""Renders a page: one file in the report's style, without scripts and without any outside request."""

from importlib import resources
from typing import Any

from markupsafe import Markup

from efficientllm.ranking.tiers import is_tied_across
from efficientllm.reporting.templating import template_environment
from efficientllm.reporting.text import estimate, percent


def render_page(template: str, **context: Any) -> str:
    """Renders a template of this package; the same context yields the same bytes.

    Args:
        template: Its file name, without `.html.j2`.
        context: What it shows; every text is escaped.

    Returns:
        A complete HTML document.
    """
    environment = template_environment("efficientllm.pages")
    environment.filters["percent"] = percent
    environment.globals |= {"estimate": estimate, "is_tied_across": is_tied_across}
    style = resources.files("efficientllm.reporting").joinpath("templates", "style.css").read_text(encoding="utf-8")
    return environment.get_template(f"{template}.html.j2").render(style=Markup(style.strip()), **context) + "\n"
