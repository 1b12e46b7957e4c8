"""The machine line: what hardware.json states, what it does not, and what the records add."""

from dataclasses import replace

import factories
import pytest

from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.machine import machine_facts


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("run")
    return collect(factories.make_run(root), root)


def test_facts_of_a_processor(evidence) -> None:
    assert machine_facts(evidence) == [
        ("CPU", "AMD EPYC 7B13"), ("cores", "2"), ("PyTorch", "2.13.0+cpu"),
        ("revision", "2b6fdca12b6f"), ("profile", "cpu"),
    ]  # fmt: skip


def test_facts_of_a_graphics_card(evidence) -> None:
    hardware = {"gpus": [{"name": "NVIDIA H100 80GB HBM3", "driver": "570.1"}], "cpu": {"model": "x"}}
    facts = dict(machine_facts(replace(evidence, hardware=hardware)))
    assert facts["GPU"] == "NVIDIA H100 80GB HBM3"
    assert facts["driver"] == "570.1"
    assert facts["cores"] == "not known"
    assert facts["PyTorch"] == "2.13.0"  # from the records


def test_every_revision_is_named(evidence) -> None:
    key, record = next(iter(evidence.records.items()))
    other = record.model_copy(
        update={"provenance": record.provenance.model_copy(update={"git_revision": None, "git_dirty": True})}
    )
    facts = dict(machine_facts(replace(evidence, records=evidence.records | {key: other})))
    assert facts["revision"] == "2b6fdca12b6f, not known with uncommitted changes"


def test_every_machine_is_named_and_what_it_does_not_state_is_not(evidence) -> None:
    key, record = next(iter(evidence.records.items()))
    hardware = {"cpu": {"model": "Xeon", "allowed_cores": 32.0}, "gpus": [{"name": "NVIDIA H200", "driver": None}]}
    other = record.model_copy(update={"provenance": record.provenance.model_copy(update={"hardware": hardware})})
    facts = dict(machine_facts(replace(evidence, records=evidence.records | {key: other})))
    assert (facts["CPU"], facts["cores"], facts["GPU"]) == ("AMD EPYC 7B13, Xeon", "2, 32", "NVIDIA H200")
    assert "driver" not in facts
