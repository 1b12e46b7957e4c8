"""Runs that were measured in parts: which cells are of which, and which groups mix them."""

from dataclasses import replace
from typing import Any

import factories
import pytest

from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render
from efficientllm.reporting.parts import mixed_groups, parts, revisions

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
