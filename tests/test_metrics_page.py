"""docs/metrics.md says what the registry says, and explains every word that it should."""

import importlib.util
import re
from pathlib import Path

from efficientllm import metrics

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_tables_are_current() -> None:
    specification = importlib.util.spec_from_file_location("metrics_page", ROOT / "scripts" / "metrics_page.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.written(PAGE) == PAGE, "run: python scripts/metrics_page.py"


def test_every_metric_and_abbreviation_is_explained() -> None:
    table, glossary = PAGE.split("## Glossary")
    for entry in metrics.METRICS:
        assert f"`{entry.key}`" in table
        assert f"| {entry.symbol} | {entry.label.lower()} |" in glossary


def test_the_glossary_explains_the_words_of_the_report() -> None:
    words = set(
        re.split(r",? |\| ", " ".join(re.findall(r"^\| ([^|]+) \|", PAGE.split("## Glossary")[1], re.MULTILINE)))
    )
    assert {
        "axis",
        "group",
        "technique",
        "cell",
        "record",
        "profile",
        "tied",
        "tier",
        "stability",
        "Pareto",
        "normalized",
    } <= words
    assert {"AMU", "PCU", "AL", "TT", "ST", "IT", "AEC", "EPT", "MCR"} <= words


def test_links_lead_somewhere() -> None:
    for name in ("metrics.md", "results.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "docs" / name).read_text(encoding="utf-8")):
            assert (ROOT / "docs" / target).exists(), target
