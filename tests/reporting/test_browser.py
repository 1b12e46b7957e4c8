"""The report in a real browser: quiet, self-contained, usable by keyboard, on a phone, on paper and without JavaScript."""

import csv
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import factories
import pytest

from efficientllm import metrics
from efficientllm.ranking.score import weighted_scores
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.groups import groups_of
from efficientllm.reporting.page import render

# one browser for all of them
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
GROUPS = ("attention", "moe", "tune-small", "tune-medium", "quantize-large")
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        message = "no chromium, chromium-browser or google-chrome on PATH"
        if os.environ.get("CI"):
            pytest.fail(f"{message}: continuous integration has to install one")
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Evidence:
    """A part of the run, with groups and failures on every axis: a browser takes a second or more for all of it."""
    root = tmp_path_factory.mktemp("run")
    evidence = collect(factories.make_run(root, factories.some_gaps), root)
    rows = [row for row in evidence.rows if row.group in GROUPS]
    cells = {(row.axis, row.cell) for row in rows}
    return replace(
        evidence, rows=rows,
        records={key: record for key, record in evidence.records.items() if key in cells},
        results=[result for result in evidence.results if result.group in GROUPS],
        ranking=[line for line in evidence.ranking if line.group in GROUPS],
        curves={key: curve for key, curve in evidence.curves.items() if key in cells},
    )  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("page") / "report with space.html"
    path.write_text(render(run), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def open_page(browser, address):
    """Opens the report and, at the end, demands that the browser had nothing to say and asked for nothing."""
    contexts, said, asked = [], [], []

    def opened(fragment="", **options):
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    outside = [url for url in asked if url.split("#")[0] != address and not url.startswith(("data:", "blob:"))]
    assert outside == []


@pytest.fixture(scope="module")
def desk(open_page):
    return open_page(viewport={"width": 1280, "height": 900}, color_scheme="light")


@pytest.fixture
def page(desk):
    """The same page for all tests, each with a fresh view."""
    desk.set_viewport_size({"width": 1280, "height": 900})
    desk.emulate_media(media="screen", color_scheme="light")
    desk.get_by_role("button", name="Reset").click()
    desk.evaluate("document.querySelectorAll('.choose').forEach(box => { box.open = false; })")
    return desk


@pytest.fixture(scope="module")
def bare(open_page):
    return open_page(java_script_enabled=False)


def visible_axes(page) -> set[str]:
    return {axis for axis in ("pretrain", "tune", "quantize") if page.locator(f"#ranking .axis-{axis}").is_visible()}


def shown_rows(page, axis: str) -> list[str]:
    """Names of an axis' visible rows, in their order."""
    return page.locator(f"#ranking .axis-{axis} tr[data-row]:not([hidden])").evaluate_all(
        "rows => rows.map(row => row.id)"
    )


def test_every_column_of_the_ranking_fits_a_laptop(page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    widths = page.locator("#ranking .scroll").evaluate_all(
        "boxes => boxes.map(box => [box.scrollWidth, box.clientWidth])"
    )
    assert len(widths) == 3
    assert all(needed <= given for needed, given in widths), "the score would cover the average rank"


@pytest.mark.parametrize("width", [1280, 1400])
def test_the_score_covers_no_rank_however_long_the_intervals(open_page, width) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate(
        "document.querySelectorAll('#ranking .axis-quantize td .standing:has(.interval)').forEach(cell => {"
        " cell.querySelector('.interval').textContent = '1,840-14,540';"
        " cell.querySelector('.flags')?.remove();"
        " cell.insertAdjacentHTML('beforeend', '<span class=flags>3 seeds noisy</span>'); })"
    )
    ends = page.locator("#ranking .axis-quantize thead th").evaluate_all(
        "heads => heads.slice(-2).map(head => head.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert ends[0][1] <= ends[1][0] + 1


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_page_never_scrolls_sideways(page, width) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    if width == 360:
        region = page.locator("#ranking .scroll").first
        assert region.evaluate("box => box.scrollWidth > box.clientWidth")
        region.focus()
        assert region.evaluate("box => box === document.activeElement")


@pytest.mark.parametrize("name", ["page", "bare"])
def test_filter_shows_one_axis(request, name) -> None:
    page = request.getfixturevalue(name)
    assert visible_axes(page) == {"pretrain", "tune", "quantize"}
    page.get_by_text("Training & Tuning", exact=True).click()
    assert visible_axes(page) == {"tune"}
    page.get_by_text("All", exact=True).click()
    assert visible_axes(page) == {"pretrain", "tune", "quantize"}


def test_filter_and_sort_work_by_keyboard_and_are_announced(page) -> None:
    page.locator("#show-all").focus()
    page.keyboard.press("ArrowRight")
    assert visible_axes(page) == {"pretrain"}
    rows = page.locator("#ranking tr[data-row]").count()
    own = page.locator("#ranking .axis-pretrain tr[data-row]").count()
    assert page.locator("#live").text_content() == f"{own} of {rows} rows shown"
    assert page.evaluate("location.hash") == "#show=pretrain"
    page.keyboard.press("Tab")
    page.keyboard.type("mla")
    assert shown_rows(page, "pretrain") == ["row-pretrain-attention-mla"]
    page.locator("#ranking-pretrain thead .term").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#ranking-pretrain th[aria-sort=ascending]").get_attribute("data-key") == "perplexity"
    assert "sorted by Held-out perplexity, ascending" in page.locator("#live").text_content()


def test_everything_is_there_without_javascript(bare, page) -> None:
    for selector in (
        "section",
        "table",
        "figure",
        "figure svg[role=img]",
        "#ranking tr[data-row]",
        "a[download]",
        ".card",
    ):
        assert bare.locator(selector).count() == page.locator(selector).count() > 0
    assert bare.locator("button, main input:not([type=radio])").count() == 0, "a control that would do nothing"
    assert bare.locator("#verdict-tune strong").first.is_visible()
    bare.locator("#values summary").first.click()
    assert bare.locator("#values table").first.is_visible()


def test_values_sort_within_their_group_and_gaps_stay_last(page) -> None:
    page.locator("#values details").first.evaluate("box => { box.open = true; }")
    table = page.locator("#values table").first
    button = table.locator("thead button.sort").first
    for direction in ("ascending", "descending"):
        button.click()
        assert table.locator(f"thead th[aria-sort={direction}]").count() == 1
        assert table.locator("thead th[aria-sort]").count() == 1
        columns = table.evaluate(
            "table => [...table.tBodies].map(body => [...body.querySelectorAll('tr[data-row]')]"
            ".map(row => row.cells[1].dataset.v === undefined ? null : Number(row.cells[1].dataset.v)))"
        )
        for values in columns:
            known = [value for value in values if value is not None]
            assert known == sorted(known, reverse=direction == "descending")
            assert all(value is None for value in values[len(known) :])
        assert any(None in values for values in columns)


def test_weights_reorder_and_limits_recommend(page, run) -> None:
    heaviest = "average_energy_consumption"
    verdict = page.locator("#verdict-tune")
    equal = verdict.text_content()
    assert "% of draws" in equal, "how sure the highest score is"
    page.locator(".axis-tune .choose summary").click()
    page.locator(f".axis-tune [data-kind=w][data-key={heaviest}]").fill("5")
    expected = []
    for group in groups_of(run):
        if group.axis != "tune":
            continue
        keys = [entry.key for entry in metrics.ranked_metrics("tune")]
        normalized = {
            key: {row.technique: group.standings[row.technique, key].normalized for row in group.rows} for key in keys
        }
        scores = weighted_scores(normalized, dict.fromkeys(keys, 1.0) | {heaviest: 5.0})
        known = [name for name in scores if scores[name] is not None]
        names = sorted(known, key=lambda name: -scores[name]) + [name for name in scores if scores[name] is None]
        expected += [f"row-tune-{group.key}-{name}".replace("_", "-") for name in names]
    assert shown_rows(page, "tune") == expected
    assert "draws" not in verdict.text_content(), "nobody has drawn with these weights"
    page.locator(f".axis-tune [data-kind=w][data-key={heaviest}]").fill("1")
    assert verdict.text_content() == equal
    page.locator(f".axis-tune [data-kind=w][data-key={heaviest}]").fill("5")
    assert page.locator(".axis-tune tr.recommended").count() == 2
    assert page.locator(f"#{expected[0]} .pick").is_visible()
    page.locator(".axis-tune [data-kind=within]").fill("2")
    page.locator(".axis-tune [data-kind=lim][data-key=accelerator_memory_utilization]").fill("0.16")
    met = []
    for group in (group for group in groups_of(run) if group.axis == "tune"):
        losses = {row.technique: group.results[row.technique, "task_loss"].value for row in group.rows}
        best = min(value for value in losses.values() if value is not None)
        for name, loss in losses.items():
            memory = group.results[name, "accelerator_memory_utilization"].value
            if loss is not None and loss <= 1.02 * best and memory <= 0.16:
                met.append(f"row-tune-{group.key}-{name}".replace("_", "-"))
    assert set(shown_rows(page, "tune")) == set(met)
    verdict = page.locator("#verdict-tune").text_content()
    assert f"{len(met)} of 14 rows meet your limits" in verdict
    assert "Medium model: none" in verdict or any("medium" in name for name in met)


def test_a_link_restores_the_view(page, open_page, address) -> None:
    page.get_by_text("Training & Tuning", exact=True).click()
    page.locator(".axis-tune .choose summary").click()
    page.locator(".axis-tune [data-kind=w]").first.fill("4")
    page.locator(".axis-tune [data-kind=within]").fill("30")
    page.locator("#ranking-tune th[data-key=average_latency] button.sort").click()
    link = page.locator("#permalink").evaluate("link => link.href")
    assert link.startswith(address + "#show=tune")
    other = open_page(link.removeprefix(address))
    assert visible_axes(other) == {"tune"}
    assert shown_rows(other, "tune") == shown_rows(page, "tune") != []
    assert other.locator("#verdict-tune").text_content() == page.locator("#verdict-tune").text_content()
    assert other.locator(".axis-tune [data-kind=w]").first.input_value() == "4"
    assert other.locator(".axis-tune [data-kind=within]").input_value() == "30"
    assert other.locator("#ranking-tune th[aria-sort]").get_attribute("data-key") == "average_latency"
    # a hash of unknown meaning changes nothing
    nonsense = "show=<b>&w.tune.constructor=3&w.__proto__.x=1&lim.tune.average_latency=x&sort.ranking-tune=constructor.asc&sort.x=y&within.tune="
    other.evaluate("hash => { location.hash = hash; }", nonsense)
    other.wait_for_function("document.querySelectorAll('#ranking .axis-tune tr[data-row]:not([hidden])').length === 14")
    assert visible_axes(other) == {"pretrain", "tune", "quantize"}
    assert other.locator("#ranking tr[hidden]").count() == 0
    assert open_page("#%E0%A4%A").locator("details.panel").count(), (
        "nor does one that is no text at all; errors fail the test"
    )


def test_links_to_gaps_and_hidden_rows_lead_there(page) -> None:
    page.locator("#ranking a.gap-mark").first.click()
    target = page.evaluate("location.hash")
    assert page.locator(target).is_visible() and "out of memory" in page.locator(target).text_content()
    page.get_by_text("Quantization", exact=True).click()
    page.locator(".card a.who").first.click()
    page.wait_for_function("document.querySelector(location.hash)?.getClientRects().length")


def test_explanations_on_hover_and_on_focus(page) -> None:
    term = page.locator("#ranking-tune .term").nth(1)
    description = metrics.metric("accelerator_memory_utilization").description
    term.hover()
    assert description in page.locator("#tip").text_content()
    page.locator("#tip").hover()
    assert page.locator("#tip").is_visible(), "it stays while the pointer is on it"
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    term.focus()
    assert description in page.locator("#tip").text_content()
    assert term.get_attribute("aria-describedby") == "tip"
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280


def test_theme_follows_the_system_until_chosen(page) -> None:
    background = "() => getComputedStyle(document.body).backgroundColor"

    def dark() -> bool:
        return sum(map(int, page.evaluate(background)[4:-1].split(","))) < 380

    page.emulate_media(color_scheme="dark")
    assert dark()
    page.emulate_media(media="print")
    assert not dark(), "paper is white"
    page.emulate_media(media="screen", color_scheme="light")
    assert not dark()
    for expected in (True, False):
        page.locator("#tools button").click()
        assert dark() == expected


def test_downloads_deliver_the_tables(page, bare) -> None:
    with page.expect_download() as download:
        page.locator("a[data-name='ranking.csv']").click()
    assert download.value.suggested_filename == "ranking.csv"
    assert (
        download.value.path()
        .read_text(encoding="utf-8")
        .startswith("axis,group,technique,metric,value,normalized,rank")
    )
    with bare.expect_download() as download:
        bare.locator("a[data-name='ranking.csv']").click()
    assert download.value.suggested_filename == "ranking.csv.gz"
    page.get_by_text("Quantization", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "axis,group,method,metric,unit,value,ci_low,ci_high,normalized"
    assert len(lines) > 20 and all(line.startswith('"quantize"') for line in lines[1:])
    latencies = [line for line in csv.DictReader(lines) if line["metric"] == "average_latency"]
    assert latencies
    for line in latencies:
        assert line["unit"] == "s", "as it is stored, whatever the page's prefix"
        assert float(line["ci_low"]) <= float(line["value"]) <= float(line["ci_high"])


def test_prints_everything_on_white(page, tmp_path) -> None:
    path = tmp_path / "report.pdf"
    page.pdf(path=path, prefer_css_page_size=True, print_background=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", path.read_bytes()))
    assert 8 <= pages <= 40
    if shutil.which("pdftotext"):
        import subprocess

        command = ["pdftotext", "-layout", str(path), "-"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for words in (
            "Which technique is efficient",
            "Attention Mechanism",
            "Kendall",
            "dvc repro -f -s stages/tuning/dvc.yaml:tune@lora-small",
        ):
            assert words in text


def test_a_landscape_page_is_as_wide_as_what_is_printed_on_it(page) -> None:
    """Else the browser prints all of it smaller, until the widest table fits; and what is printed can be read."""
    page.set_viewport_size({"width": round((297 - 24) / 25.4 * 96), "height": 700})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
    smallest = "Math.min(...[...document.querySelectorAll('#values td, #values td *')].map(one => parseFloat(getComputedStyle(one).fontSize)))"
    assert page.evaluate(smallest) >= 8


@pytest.mark.parametrize(("scheme", "rules"), [("light", {"type": "tag", "values": AXE_RULES}), ("dark", {"type": "rule", "values": ["color-contrast"]})])  # fmt: skip
def test_accessible(page, scheme, rules) -> None:
    """By axe-core; the dark theme differs in its colours only."""
    import axe_playwright_python

    script = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(media="screen", color_scheme=scheme)
    # of rows and figures that are alike the first of each kind: axe takes seconds per thousand elements
    page.evaluate(
        "document.querySelectorAll('tbody').forEach(body => [...body.rows].slice(4).forEach(row => row.remove()));"
        "document.querySelectorAll('figure ~ figure, .panels > div ~ div').forEach(one => one.remove());"
        "document.querySelectorAll('details').forEach(box => { box.open = true; })"
    )
    page.evaluate(script)
    violations = page.evaluate(
        "async rules => (await axe.run(document, {runOnly: rules, resultTypes: ['violations'], preload: false}))"
        ".violations.map(found => [found.id, found.nodes.map(node => node.html.slice(0, 200))])",
        rules,
    )
    page.emulate_media(media="screen", color_scheme="light")
    assert violations == []
