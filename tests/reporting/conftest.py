"""One finished run with a failed cell on each axis, and its page."""

import factories
import pytest
from markup import Page

from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.page import render


@pytest.fixture(scope="session")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("run")
    return collect(factories.make_run(root, factories.some_gaps), root)


@pytest.fixture(scope="session")
def source(evidence) -> str:
    return render(evidence)


@pytest.fixture(scope="session")
def page(source) -> Page:
    return Page(source)
