"""The page's structure, determinism, safety and honesty."""

import base64
import csv
import gzip
import hashlib
import io
import itertools
import json
import re

import factories

from efficientllm import metrics, pipeline
from efficientllm.records import Record
from efficientllm.reporting.page import render


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
        drawings = [child for child in page.inside(index) if page.elements[child][0] == "svg"]
        for svg in (child for child in drawings if page.attributes(child).get("aria-hidden") != "true"):
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
    styles = re.findall(r"<style>(.*?)</style>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert len(styles) == 1 and f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and " style=" not in source
    assert len(scripts[0].encode()) <= 15_000


def test_every_row_and_every_ranked_metric_is_in_the_table(evidence, page) -> None:
    for row in evidence.rows:
        own = f"row-{row.axis}-{row.group}-{row.technique}".replace("_", "-")
        index = next(i for i in page.all("tr") if page.attributes(i).get("id") == own)
        cells = [child for child in page.inside(index) if page.elements[child][0] == "td"]
        assert len(cells) == len(metrics.ranked_metrics(row.axis)) + 2
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
                assert (", tied with" in shown or ", tied across tiers with" in shown) == line.tied
                assert ("rank holds in" in shown) == (line.stability is not None)
    assert "modelled" in page.text(page.all("table")[0])


def test_gaps_carry_their_reasons(page) -> None:
    text = page.section("gaps")
    assert "MoE medium x8" in text and "failed: out of memory: 90.1 GiB wanted" in text
    assert "DoRA (small model)" in text and "the loss diverged" in text
    assert "float16 (medium model)" in text and "this CPU cannot multiply float16" in text
    assert "int4 (large model)" in text and "RAPL is readable by root only" in text
    assert factories.NO_PEAK in text


def test_downloads_hold_the_same_figures(evidence, page) -> None:
    links = {
        page.attributes(i)["download"]: page.attributes(i)["href"]
        for i in page.all("a")
        if "download" in page.attributes(i)
    }
    content = {
        name.removesuffix(".gz"): gzip.decompress(base64.b64decode(uri.split("base64,")[1])) for name, uri in links.items()
    }  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(content["results.csv"].decode())))
    assert len(lines) == len(evidence.results)
    for line, result in zip(lines, evidence.results, strict=True):
        assert (float(line["value"]) if line["value"] else None) == result.value
        assert (line["metric"], line["cell"]) == (result.metric, result.cell)
    assert len(list(csv.DictReader(io.StringIO(content["ranking.csv"].decode())))) == len(evidence.ranking)
    records = json.loads(content["records.json"])
    assert [Record.model_validate(record) for record in records] == list(evidence.records.values())


def test_quality_is_set_against_the_baselines(evidence, page) -> None:
    quality = next(i for i in page.all("section") if page.attributes(i)["id"] == "quality")
    text = page.text(quality)
    assert "unigram model baseline 583" in text
    assert "bigram model baseline 66.0" in text
    assert "commonest answer baseline 19.0" in text  # (228 * 25 % + 72 * 0 %) / 300
    for record in evidence.records.values():
        if record.axis == "pretrain" and record.status == "ok":
            found = record.metrics["perplexity"]
            assert found.ci_low is not None and found.ci_high is not None
            verdict = (
                "not distinguishable" if found.ci_low <= 66.04 <= found.ci_high
                else "better" if found.value < 66.04 else "not better"
            )  # fmt: skip
            label = next(row.label for row in evidence.rows if row.cell == record.cell)
            row = next(
                i for i in page.inside(quality) if page.elements[i][0] == "tr" and page.text(i).startswith(label)
            )
            assert page.text(row).endswith(verdict)


def test_commands_name_stages_of_this_run(evidence, page) -> None:
    commands = {page.text(i) for i in page.all("code")}
    for axis, cell in evidence.records:
        assert f"dvc repro -f -s {pipeline.address(f'{axis}@{cell}')}" in commands
        assert f"dvc repro -f -s {pipeline.address(f'measure_{axis}@{cell}')}" in commands


def test_figures_follow_the_theme(source) -> None:
    figures = re.findall(r'<svg viewBox="0 .*?</svg>', source, flags=re.DOTALL)
    assert len(figures) >= 100
    for figure in figures:
        assert "currentColor" in figure
        assert not re.search(r"#[0-9a-f]{6}\b", figure), "a colour that ignores the theme"
        assert "<style" not in figure and "<metadata" not in figure
