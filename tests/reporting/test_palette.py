"""Colours of both themes: readable, and the same in both places that name the dark one."""

import re

import factories
import pytest


def palettes() -> dict[str, dict[str, str]]:
    style = (factories.REPOSITORY / "efficientllm/reporting/templates/style.css").read_text()
    light = re.search(r":root \{(.*?)\}", style, flags=re.DOTALL).group(1)
    dark = re.findall(
        r':root(?::not\(\[data-theme="light"\]\)|\[data-theme="dark"\]) \{(.*?)\}', style, flags=re.DOTALL
    )
    assert len(dark) >= 2
    read = lambda block: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))  # noqa: E731
    assert read(dark[0]) == read(dark[1]), "the dark palette is written twice and must agree"
    return {"light": read(light), "dark": read(light) | read(dark[0])}


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme) -> None:
    palette = palettes()[theme]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for tier in ("high", "medium", "low"):
        assert contrast(palette[f"{tier}-ink"], palette[tier]) >= 4.5
        assert contrast(palette[f"bar-{tier}"], palette["surface"]) >= 2.0  # each bar has its number printed
    for text in ("ink", "muted", "link"):
        for ground in ("page", "surface", "sunken"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for series in range(1, 8):
        assert contrast(palette[f"series-{series}"], palette["surface"]) >= 3.0
    assert contrast(palette["focus"], palette["page"]) >= 3.0
