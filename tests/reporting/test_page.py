"""The page's structure, determinism, safety and honesty."""

import base64
import csv
import gzip
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import factories
import pytest

from efficientllm import metrics, paths
from efficientllm.errors import ArtifactError
from efficientllm.ranking.results import rank
from efficientllm.records import Record
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
VOID = {"meta", "link", "input", "br", "img", "path", "use", "hr"}


class Page(HTMLParser):
    """The page's elements, with their attributes, text and ancestors."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None], list[int]]] = []
        self.texts: list[tuple[str, list[int]]] = []
        self._open: list[int] = []
        self.feed(source)
        self.close()
        assert not self._open, [self.elements[index][0] for index in self._open]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), list(self._open)))
        if tag not in VOID or self.get_starttag_text().endswith("/>"):
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), list(self._open)))

    def handle_endtag(self, tag):
        if tag in VOID:
            if self._open and self.elements[self._open[-1]][0] == tag:
                self._open.pop()
            return
        assert self._open and self.elements[self._open[-1]][0] == tag, f"</{tag}> closes nothing, {self.getpos()}"
        self._open.pop()

    def handle_data(self, data):
        self.texts.append((data, list(self._open)))

    def all(self, tag):
        return [index for index, element in enumerate(self.elements) if element[0] == tag]

    def attributes(self, index):
        return self.elements[index][1]

    def inside(self, index):
        return [position for position, element in enumerate(self.elements) if index in element[2]]

    def text(self, index):
        return " ".join("".join(text for text, ancestors in self.texts if index in ancestors).split())


def some_gaps(record: Record) -> Record:
    if record.cell == "moe_medium":
        return factories.failed(record, "out of memory: 90.1 GiB wanted, 78.3 GiB free")
    if record.cell == "int4-large":
        return factories.without(record, ["energy_per_token"], "RAPL is readable by root only")
    return record


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("run")
    return collect(factories.make_run(root, some_gaps), root)


@pytest.fixture(scope="module")
def source(evidence) -> str:
    return render(evidence)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_same_evidence_same_bytes(evidence, source) -> None:
    assert render(evidence) == source
    assert len(source.encode()) < 1_500_000


def test_ids_are_unique_and_links_lead_somewhere(page) -> None:
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for index in page.all("a"):
        target = page.attributes(index)["href"]
        if target.startswith("#"):
            assert target[1:] in ids, target
    for _, attributes, _ in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)


def test_tables_and_figures_can_be_read_aloud(page) -> None:
    assert page.all("th")
    for index in page.all("th"):
        assert page.attributes(index).get("scope") in ("col", "row", "rowgroup"), page.text(index)
    for index in page.all("table"):
        captions = [child for child in page.inside(index) if page.elements[child][0] == "caption"]
        assert len(captions) == 1 and page.text(captions[0])
        regions = [
            ancestor for ancestor in page.elements[index][2] if page.attributes(ancestor).get("role") == "region"
        ]
        assert len(regions) == 1 and page.attributes(regions[0])["tabindex"] == "0"
        assert page.attributes(regions[0])["aria-label"]
    assert page.all("figure")
    for index in page.all("figure"):
        children = [page.elements[child][0] for child in page.inside(index)]
        assert children.count("figcaption") == 1 and "table" in children
        for svg in (child for child in page.inside(index) if page.elements[child][0] == "svg"):
            names = page.attributes(svg)["aria-labelledby"].split()
            named = [child for child in page.inside(svg) if page.attributes(child).get("id") in names]
            assert len(named) == 2 and all(page.text(child) for child in named)
    assert page.attributes(page.all("html")[0])["lang"] == "en"
    skip = page.attributes(page.all("a")[0])
    assert skip["class"] == "skip" and skip["href"] == "#ranking"
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_fetches_nothing(page, source) -> None:
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            target = attributes.get(name)
            if target is not None and tag != "a":
                assert target.startswith(("data:", "#")), (tag, target)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert {tag for tag, _, _ in page.elements} & {"iframe", "object", "embed", "img", "base", "form"} == set()
    assert not any(name.startswith("on") for _, attributes, _ in page.elements for name in attributes)


def test_policy_allows_the_one_script_and_no_other(page, source) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    assert len(scripts) == len(page.all("script")) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = page.attributes(next(i for i in page.all("meta") if "http-equiv" in page.attributes(i)))["content"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert len(scripts[0].encode()) <= 15_000


def test_every_row_and_every_ranked_metric_is_in_the_table(evidence, page) -> None:
    for row in evidence.rows:
        own = f"row-{row.axis}-{row.group}-{row.technique}".replace("_", "-")
        index = next(i for i in page.all("tr") if page.attributes(i).get("id") == own)
        cells = [child for child in page.inside(index) if page.elements[child][0] == "td"]
        assert len(cells) == len(metrics.ranked_metrics(row.axis)) + 1
        assert page.text(index).startswith(row.label)
        for cell, entry in zip(cells, metrics.ranked_metrics(row.axis), strict=False):
            line = next(
                item
                for item in evidence.ranking
                if (item.axis, item.group, item.technique, item.metric)
                == (row.axis, row.group, row.technique, entry.key)
            )
            shown = page.text(cell)
            if line.rank is None:
                assert "not measured" in shown
            else:
                assert shown.startswith(f"rank {line.rank}{'=' if line.tied else ''} ")
                assert (f"{line.tier} tier" if line.tier else "no tier") in shown
                assert ("tied with" in shown) == line.tied
    assert "modelled" in page.text(page.all("table")[0])


def test_gaps_carry_their_reasons(page) -> None:
    gaps = next(i for i in page.all("section") if page.attributes(i)["id"] == "gaps")
    text = page.text(gaps)
    assert "MoE medium x8" in text and "failed: out of memory: 90.1 GiB wanted" in text
    assert "int4 (large model)" in text and "RAPL is readable by root only" in text
    assert factories.NO_PEAK in text


def test_downloads_hold_the_same_figures(evidence, page) -> None:
    links = {
        page.attributes(i)["download"]: page.attributes(i)["href"]
        for i in page.all("a")
        if "download" in page.attributes(i)
    }
    content = {name: base64.b64decode(uri.split("base64,")[1]) for name, uri in links.items()}
    lines = list(csv.DictReader(io.StringIO(content["results.csv"].decode())))
    assert len(lines) == len(evidence.results)
    for line, result in zip(lines, evidence.results, strict=True):
        assert (float(line["value"]) if line["value"] else None) == result.value
        assert (line["metric"], line["cell"]) == (result.metric, result.cell)
    assert len(list(csv.DictReader(io.StringIO(content["ranking.csv"].decode())))) == len(evidence.ranking)
    records = json.loads(gzip.decompress(content["records.json.gz"]))
    assert [Record.model_validate(record) for record in records] == list(evidence.records.values())


def test_quality_is_set_against_the_baselines(evidence, page) -> None:
    quality = next(i for i in page.all("section") if page.attributes(i)["id"] == "quality")
    text = page.text(quality)
    assert "unigram model baseline 583" in text
    assert "bigram model baseline 66.0" in text
    assert "commonest answer baseline 19.0" in text  # (228 * 25 % + 72 * 0 %) / 300
    for record in evidence.records.values():
        if record.axis == "pretrain" and record.status == "ok":
            verdict = "better" if record.metrics["perplexity"].value < 66.04 else "not better"
            label = next(row.label for row in evidence.rows if row.cell == record.cell)
            row = next(
                i for i in page.inside(quality) if page.elements[i][0] == "tr" and page.text(i).startswith(label)
            )
            assert page.text(row).endswith(verdict)


def test_commands_name_stages_of_this_run(evidence, page) -> None:
    commands = {page.text(i) for i in page.all("code")}
    for axis, cell in evidence.records:
        assert f"dvc repro -f -s {axis}@{cell}" in commands
        assert f"dvc repro -f -s measure_{axis}@{cell}" in commands


def test_figures_follow_the_theme(source) -> None:
    figures = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(figures) >= 4
    for figure in figures:
        assert "currentColor" in figure
        assert not re.search(r"#[0-9a-f]{6}\b", figure), "a colour that ignores the theme"
        assert "<style" not in figure and "<metadata" not in figure


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


def test_hostile_texts_stay_texts(evidence) -> None:
    rows = [replace(row, label=HOSTILE, group_label=HOSTILE) for row in evidence.rows]
    results = [replace(result, label=HOSTILE, method=HOSTILE if result.method else None, missing_reason=HOSTILE if result.missing_reason else None) for result in evidence.results]  # fmt: skip
    hostile = replace(
        evidence, rows=rows, results=results, hardware={"device": HOSTILE, HOSTILE: [HOSTILE, {"a": None}]},
        profile=HOSTILE, without_curve={("pretrain", "mqa"): HOSTILE},
        manifest=evidence.manifest | {"source": {"name": HOSTILE}},
    )  # fmt: skip
    source = render(hostile)
    found = Page(source)
    assert "<img" not in source and source.count("</script>") == 1
    assert "7*7" in source and "49" not in found.text(found.all("h3")[0])
    assert not any(name.startswith("on") for _, attributes, _ in found.elements for name in attributes)
    ids = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_all_failed(tmp_path) -> None:
    configuration = factories.make_run(tmp_path, lambda record: factories.failed(record, "no memory"))
    page = Page(render(collect(configuration, tmp_path)))
    assert "No energy per token could be established" in page.text(page.all("header")[0])
    cells = len({(row.axis, row.cell) for row in configuration.rows()})
    assert f"{cells} cells, {cells} failed. Of their figures, 0 are measured" in page.text(page.all("header")[0])


def test_one_row(evidence) -> None:
    row = next(row for row in evidence.rows if row.cell == "mqa")
    results = [result for result in evidence.results if result.technique == "mqa"]
    one = replace(
        evidence, rows=[row], records={("pretrain", "mqa"): evidence.records["pretrain", "mqa"]},
        results=results, ranking=rank(results),
        curves={("pretrain", "mqa"): evidence.curves["pretrain", "mqa"]}, without_curve={},
    )  # fmt: skip
    page = Page(render(one))
    assert len([i for i in page.all("tr") if (page.attributes(i).get("id") or "").startswith("row-")]) == 1


def test_no_row(evidence) -> None:
    none = replace(evidence, rows=[], records={}, results=[], ranking=[], curves={}, without_curve={})
    page = Page(render(none))
    assert "No row is declared" in page.text(page.all("main")[0])
    assert "No training run of this report left a curve" in page.text(page.all("main")[0])


def test_stale_tables_are_refused(tmp_path) -> None:
    configuration = factories.make_run(tmp_path)
    path = tmp_path / paths.RESULTS / "ranking.csv"
    path.write_text(path.read_text().replace(",1,", ",2,", 1))
    with pytest.raises(ArtifactError, match=r"ranking\.csv does not follow from the records"):
        collect(configuration, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step,tokens,loss\n1,2,3\n", "has no column validation_loss, seconds, joules"),
        ("step,tokens,loss,validation_loss,learning_rate,seconds,joules\n1,2,x,,,,\n", "line 2: loss is 'x'"),
        ("step,tokens,loss,validation_loss,learning_rate,seconds,joules\n1,,3,,,,\n", "a line has no token count"),
    ],
)
def test_damaged_curves_are_refused(tmp_path: Path, content, message) -> None:
    configuration = factories.make_run(tmp_path)
    (tmp_path / paths.telemetry("pretrain", "mqa") / "curve.csv").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        collect(configuration, tmp_path)


def test_curves_may_be_absent_with_a_reason(tmp_path: Path) -> None:
    configuration = factories.make_run(tmp_path)
    (tmp_path / paths.telemetry("pretrain", "mqa") / "curve.csv").unlink()
    folder = tmp_path / paths.telemetry("tune", "lora-small")
    (folder / "failure.json").write_text('{"reason": "the loss diverged"}')
    found = collect(configuration, tmp_path)
    assert found.without_curve == {
        ("pretrain", "mqa"): "this run left no telemetry: nothing was trained",
        ("tune", "lora-small"): "failed: the loss diverged",
    }
    assert "LoRA (small model): failed: the loss diverged" in re.sub(r"\s+", " ", render(found))
