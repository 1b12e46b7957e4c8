"""The report in a real browser: quiet, self-contained, usable on a phone and without JavaScript."""

import os
import shutil

import factories
import pytest

from efficientllm.reporting.evidence import collect
from efficientllm.reporting.page import render

pytestmark = pytest.mark.slow
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


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
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    configuration = factories.make_run(
        root, lambda record: factories.failed(record, "out of memory") if record.cell == "moe_medium" else record
    )
    path = root / "report with space.html"
    path.write_text(render(collect(configuration, root)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the report and, at the end, demands that the browser had nothing to say and asked for nothing."""
    contexts, said, asked = [], [], []

    def opened(fragment="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    outside = [url for url in asked if url.split("#")[0] != address and not url.startswith("data:")]
    assert outside == []


def visible_axes(page) -> set[str]:
    return {axis for axis in ("pretrain", "tune", "quantize") if page.locator(f"#ranking .axis-{axis}").is_visible()}


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_page_never_scrolls_sideways(open_page, width) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    if width == 360:
        region = page.locator("#ranking .scroll").first
        assert region.evaluate("box => box.scrollWidth > box.clientWidth")
        region.focus()
        assert region.evaluate("box => box === document.activeElement")


@pytest.mark.parametrize("javascript", [True, False])
def test_filter_shows_one_axis(open_page, javascript) -> None:
    page = open_page(java_script_enabled=javascript)
    assert visible_axes(page) == {"pretrain", "tune", "quantize"}
    page.get_by_text("Training & Tuning", exact=True).click()
    assert visible_axes(page) == {"tune"}
    page.get_by_text("All", exact=True).click()
    assert visible_axes(page) == {"pretrain", "tune", "quantize"}


def test_filter_works_by_keyboard_is_announced_and_shared(open_page) -> None:
    page = open_page()
    page.locator("#show-all").focus()
    page.keyboard.press("ArrowRight")
    assert visible_axes(page) == {"pretrain"}
    rows = page.locator("#ranking tr[data-row]").count()
    own = page.locator("#ranking .axis-pretrain tr[data-row]").count()
    assert page.locator("#live").text_content() == f"{own} of {rows} rows shown"
    assert page.evaluate("location.hash") == "#show=pretrain"
    assert visible_axes(open_page("#show=quantize")) == {"quantize"}
    # a hash of unknown meaning changes nothing
    assert visible_axes(open_page("#show=<b>")) == {"pretrain", "tune", "quantize"}


def test_everything_is_there_without_javascript(open_page) -> None:
    page, scripted = open_page(java_script_enabled=False), open_page()
    for selector in ("section", "table", "figure", "svg", "#ranking tr[data-row]", "a[download]", ".card"):
        assert page.locator(selector).count() == scripted.locator(selector).count() > 0
    assert page.locator("button").count() == 0, "a button that would do nothing"
    page.locator("#values summary").first.click()
    assert page.locator("#values table").first.is_visible()


def test_values_sort_within_their_group_and_gaps_stay_last(open_page) -> None:
    page = open_page()
    page.locator("#values summary").first.click()
    table = page.locator("#values table").first
    button = table.locator("thead button.sort").first

    def columns():
        return table.evaluate(
            "table => [...table.tBodies].map(body => [...body.querySelectorAll('tr[data-row]')]"
            ".map(row => row.cells[1].dataset.sort === undefined ? null : Number(row.cells[1].dataset.sort)))"
        )

    for direction in ("ascending", "descending"):
        button.click()
        assert table.locator(f"thead th[aria-sort={direction}]").count() == 1
        assert table.locator("thead th[aria-sort]").count() == 1
        for values in columns():
            known = [value for value in values if value is not None]
            assert known == sorted(known, reverse=direction == "descending")
            assert all(value is None for value in values[len(known) :])
    assert any(None in values for values in columns())


def test_links_to_gaps_and_hidden_rows_lead_there(open_page) -> None:
    page = open_page()
    page.locator("#ranking a.gap-mark").first.click()
    target = page.evaluate("location.hash")
    assert page.locator(target).is_visible() and "out of memory" in page.locator(target).text_content()
    page.locator("#show-quantize").check(force=True)
    page.locator(".card a.who").first.click()
    assert page.locator(page.evaluate("location.hash")).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_chosen(open_page, scheme) -> None:
    page = open_page(color_scheme=scheme)
    background = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    assert (sum(map(int, before[4:-1].split(","))) < 380) == (scheme == "dark")
    page.locator("#tools button").click()
    assert (sum(map(int, page.evaluate(background)[4:-1].split(","))) < 380) == (scheme == "light")


def test_download_delivers_the_table(open_page) -> None:
    page = open_page()
    with page.expect_download() as download:
        page.locator("a[download='ranking.csv']").click()
    content = download.value.path().read_text(encoding="utf-8")
    assert content.startswith("axis,group,technique,metric,value,normalized,rank,tied,tier")


def test_prints_with_every_table_open(open_page) -> None:
    page = open_page()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert len(page.pdf(prefer_css_page_size=True)) > 50_000
    assert not page.locator("nav").is_visible()
