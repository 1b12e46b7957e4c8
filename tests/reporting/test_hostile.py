"""Names and texts that would break a page, and runs with almost nothing in them."""

from dataclasses import replace

import factories
import pytest
from markup import Page

from efficientllm.ranking.results import rank
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render

MARKUP = "</script><img src=x onerror=alert(1)>\"'&{{7*1913}}</style><!--]]>"
RIGHT_TO_LEFT = "\u202eتقنية الضغط\u202c"
LONG = "x" * 200


@pytest.fixture(scope="module")
def named(evidence) -> Evidence:
    """The run with hostile names, by turns, and hostile texts everywhere else."""
    names = (MARKUP, RIGHT_TO_LEFT, LONG)
    labels = {
        (row.axis, row.group, row.technique): f"{names[position % 3]}{position}" for position, row in enumerate(evidence.rows)
    }  # fmt: skip
    rows = [replace(row, label=labels[row.axis, row.group, row.technique], group_label=MARKUP) for row in evidence.rows]
    results = [
        replace(
            result, label=labels[result.axis, result.group, result.technique], method=result.method and MARKUP,
            missing_reason=result.missing_reason and MARKUP,
        )
        for result in evidence.results
    ]  # fmt: skip
    return replace(
        evidence, rows=rows, results=results, hardware={"device": MARKUP, MARKUP: [MARKUP, {"a": None}]},
        profile=MARKUP, without_curve={("pretrain", "mqa"): MARKUP},
        manifest=evidence.manifest | {"source": {"name": MARKUP}},
    )  # fmt: skip


def test_hostile_texts_stay_texts(named) -> None:
    source = render(named)
    found = Page(source)
    assert "<img" not in source and source.count("</script>") == source.count("</style>") == 1
    assert "7*1913" in source and "13391" not in found.text(found.all("h3")[0])
    assert not any(name.startswith("on") for _, attributes, _ in found.elements for name in attributes)
    ids = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = found.section("ranking")
    assert all(row.label in text for row in named.rows)


def test_all_failed(tmp_path) -> None:
    configuration = factories.make_run(tmp_path, lambda record: factories.failed(record, "no memory"))
    page = Page(render(collect(configuration, tmp_path)))
    head = page.text(page.all("header")[0])
    assert "No energy per token could be established" in head
    cells = len({(row.axis, row.cell) for row in configuration.rows()})
    assert f"{cells} cells, {cells} failed. Of their figures, 0 are measured" in head
    assert "No figure of this run has an interval" in page.section("certainty")
    assert "fewer than two rows have both figures" in page.section("tradeoffs")


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
    assert "the only one with this figure" in page.section("answers")
    assert "nothing to compare it with" in page.section("figures")
    assert "no technique of the paper's" not in page.section("paper")


def test_no_row(evidence) -> None:
    none = replace(evidence, rows=[], records={}, results=[], ranking=[], curves={}, without_curve={})
    page = Page(render(none))
    assert "No row is declared" in page.section("answers")
    assert "No training run of this report left a curve" in page.section("training")
    assert "The paper ranks none of this run’s groups" in page.section("paper")  # noqa: RUF001
    assert "No record of this run holds serving curves" in page.section("serving")
