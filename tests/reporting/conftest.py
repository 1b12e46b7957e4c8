"""One finished run with a failed cell on each axis, and its page."""

import factories
import pytest
from markup import Page

from efficientllm.records import Record
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render

FAILURES = {
    "moe_medium": "out of memory: 90.1 GiB wanted, 78.3 GiB free",
    "dora-small": "the loss diverged",
    "float16-medium": "this CPU cannot multiply float16",
}
DOUBT = "other programs kept up to 1.2 of the cores busy"


def some_gaps(record: Record) -> Record:
    if record.cell in FAILURES:
        return factories.failed(record, FAILURES[record.cell])
    if record.cell == "int4-large":
        return factories.without(record, ["energy_per_token"], "RAPL is readable by root only")
    if record.cell == "mqa":
        return factories.doubtful(record, ["average_latency", "energy_per_token"], DOUBT)
    return record


@pytest.fixture(scope="session")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("run")
    return collect(factories.make_run(root, some_gaps), root)


@pytest.fixture(scope="session")
def source(evidence) -> str:
    return render(evidence)


@pytest.fixture(scope="session")
def page(source) -> Page:
    return Page(source)
