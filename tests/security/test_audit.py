"""The audit of dependencies: what is known, what is not, and what was never asked."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
specification = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
assert specification is not None
assert specification.loader is not None
audit = importlib.util.module_from_spec(specification)
specification.loader.exec_module(audit)

SAFE = {"name": "numpy", "version": "2.1.0", "vulns": []}
HOLED = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}
UNKNOWN = {"name": "mine", "skip_reason": "Dependency not found on PyPI"}


def judged(*entries: object) -> tuple[int, list[str]]:
    code, lines = audit.judge(json.dumps({"dependencies": list(entries)}), "")
    return code, lines


def test_findings_fail() -> None:
    assert judged(SAFE, HOLED) == (
        1, ["jinja2 2.10: PYSEC-2019-217, fixed in 2.10.1", "2 packages audited, 1 known vulnerabilities"],
    )  # fmt: skip


def test_what_the_service_does_not_know_is_named() -> None:
    assert judged(SAFE, UNKNOWN) == (
        0, ["1 packages audited, 0 known vulnerabilities", "not audited, unknown to the service: mine"],
    )  # fmt: skip


def test_a_service_that_knows_nothing_was_not_reached() -> None:
    assert judged(UNKNOWN) == (0, ["skipped: advisory service unreachable (it answers for none of 1 packages)"])


@pytest.mark.parametrize(
    "line", ["ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", "Max retries exceeded: timed out"]
)
def test_no_network_is_no_failure(line: str) -> None:
    code, lines = audit.judge("", f"WARNING: hashes\n{line}\n")
    assert (code, lines) == (0, [f"skipped: advisory service unreachable ({line})"])


def test_a_broken_audit_fails() -> None:
    assert audit.judge("", "No module named pip_audit\n") == (1, ["error: pip-audit failed: No module named pip_audit"])
