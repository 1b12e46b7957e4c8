"""Runs that were measured in parts: which cells are of which, and which groups mix them."""

from dataclasses import replace
from typing import Any

import factories
import pytest
from markup import Page

from efficientllm.ranking.results import rank
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render
from efficientllm.reporting.parts import cards, cards_of, mixed_groups, parts, revisions
from efficientllm.reporting.summary import answers

CARD = {"name": "NVIDIA <H200>", "driver": "580.1"}
LATER = {
    "gpus": [CARD, CARD], "cpu": {"model": "Xeon", "allowed_cores": 32.0}, "ram_limit_gib": 251.8,
    "software": {"torch": "2.11.0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("run")
    return collect(factories.make_run(root), root)


def measured_elsewhere(evidence: Evidence, keys: Any, **changes: Any) -> Evidence:
    changed = {
        key: record.model_copy(update={"provenance": record.provenance.model_copy(update=changes)})
        if key in keys
        else record
        for key, record in evidence.records.items()
    }
    return replace(evidence, records=changed)


def test_a_run_of_one_origin_has_one_part_and_no_word_of_it(evidence) -> None:
    (part,) = parts(evidence)
    assert part.cells == "Architecture Pretraining Efficiency; Training & Tuning Efficiency; Bit-Width Quantization"
    assert mixed_groups(evidence) == []
    assert 'id="parts"' not in render(evidence)


def test_an_axis_of_another_machine_is_a_part_and_mixes_no_group(evidence) -> None:
    tuned = [key for key in evidence.records if key[0] == "tune"]
    changed = measured_elsewhere(evidence, tuned, hardware=LATER, git_revision="f" * 40)
    first, second = parts(changed)
    assert first.cells == "Architecture Pretraining Efficiency; Bit-Width Quantization"
    assert second.cells == "Training & Tuning Efficiency"
    assert second.revision == "f" * 12
    assert second.machine == "2 x NVIDIA <H200>, driver 580.1, Xeon, 32 cores, 252 GiB of memory, PyTorch 2.11.0"
    assert revisions(changed) == ["2b6fdca12b6f", "f" * 12]
    assert mixed_groups(changed) == []
    page = render(changed)
    assert 'id="parts"' in page
    assert "No group of rows mixes them" in page
    assert "NVIDIA &lt;H200&gt;" in page


def test_one_row_of_another_revision_mixes_its_groups(evidence) -> None:
    changed = measured_elsewhere(evidence, [("tune", "lora-small")], git_revision="e" * 40, git_dirty=True)
    parted = {part.cells: part.revision for part in parts(changed)}
    assert parted["Training & Tuning Efficiency: LoRA (small model)"] == "e" * 12 + " with uncommitted changes"
    (mixed,) = mixed_groups(changed)
    assert mixed.startswith("Training & Tuning Efficiency: Small")
    assert mixed.replace("&", "&amp;") in render(changed)


def measured_on(evidence: Evidence, used: Any) -> Evidence:
    """Lets records name the card that `used` gives for their axis and cell."""
    return replace(
        evidence,
        records={
            key: record.model_copy(update={"information": record.information | {"card": used(*key)}})
            for key, record in evidence.records.items()
        },
    )


def test_one_card_or_none_is_not_worth_a_word(evidence) -> None:
    one = measured_on(evidence, lambda axis, cell: "GPU-1")
    assert cards(evidence) is None
    assert cards(one) is None
    assert cards_of(evidence, "tune", ["lora-small"]) == []
    assert cards_of(one, "tune", ["lora-small", "dora-small"]) == ["GPU-1"]
    assert "more than one card" not in render(one)


def test_rows_of_a_group_on_several_cards_are_told(evidence) -> None:
    """One part on several cards of one machine: nothing but the records' cards tells the rows apart."""
    on_h200 = measured_elsewhere(evidence, evidence.records, hardware=LATER)
    changed = measured_on(on_h200, lambda axis, cell: "GPU-2" if cell == "lora-small" else "GPU-1")
    (part,) = parts(changed)
    assert (part.cards, mixed_groups(changed)) == (2, [])
    found = cards(changed)
    assert found is not None
    assert (found.count, found.kind, found.every) == (2, "NVIDIA <H200>", False)
    assert [title.startswith("Training & Tuning Efficiency: Small") for title in found.groups] == [True]
    assert cards_of(changed, "tune", ["lora-small", "dora-small"]) == ["GPU-1", "GPU-2"]
    page = render(changed)
    assert "Measured on 2 cards of one kind, NVIDIA &lt;H200&gt;; even equal cards differ by a few percent." in page
    assert f"<strong>Rows from more than one card</strong> appear in {found.groups[0].replace('&', '&amp;')}:" in page
    assert "No group of rows mixes" not in page


def test_answers_among_rows_of_several_cards_say_so(evidence) -> None:
    """Of the two tuning cells on another card one is at a size that no answer is about, and one lacks the energy."""
    lone = ("lora-medium", "dora-small")
    measured = measured_on(evidence, lambda axis, cell: "GPU-<2>" if cell in lone else "GPU-<1>")
    results = [
        replace(result, value=None, missing_reason="not read")
        if (result.cell, result.metric) == ("lora-medium", "energy_per_token")
        else result
        for result in measured.results
    ]
    changed = replace(measured, results=results, ranking=rank(results))
    flagged = {
        (card.axis, question.text)
        for card in answers(changed)
        for question in card.questions
        for answer in question.answers
        if answer.several_cards
    }
    assert flagged == {("tune", "Fastest"), ("tune", "Smallest memory"), ("tune", "Best quality")}
    text = Page(render(changed)).section("answers")
    assert text.count("several cards") == len(flagged)
    assert text.count("“Several cards” marks answers") == 1
    elsewhere = render(measured_on(evidence, lambda axis, cell: "GPU-<2>" if cell in lone[1:] else "GPU-<1>"))
    assert "Rows from more than one card" in elsewhere
    assert "everal cards" not in elsewhere, "no answer is about that size"


def test_parts_that_no_group_mixes_do_not_hide_that_cards_are_mixed(evidence) -> None:
    tuned = [key for key in evidence.records if key[0] == "tune"]
    changed = measured_elsewhere(evidence, tuned, git_revision="f" * 40)
    places = {key: place for place, key in enumerate(evidence.records)}
    mixed = measured_on(changed, lambda axis, cell: f"GPU-{places[axis, cell] % 2}")
    page = render(mixed)
    assert "No group of rows mixes" not in page
    assert "Rows from more than one card</strong> appear in" in page
    apart = render(measured_on(changed, lambda axis, cell: f"GPU-{axis}"))
    assert "No group of rows mixes them." in apart
    assert "No group of rows mixes cards." in apart
