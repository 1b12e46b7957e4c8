"""Asks the advisory service of PyPI for known vulnerabilities of the versions in constraints.txt.

    pip install pip-audit && python scripts/audit.py

Where the service cannot be reached nothing is known, and the audit says that it was skipped.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
SKIPPED = "skipped: advisory service unreachable"
_COMMAND = [
    "--requirement",
    str(CONSTRAINTS),
    "--no-deps",
    "--disable-pip",
    "--format",
    "json",
    "--progress-spinner",
    "off",
]
_UNREACHABLE = ("connect", "timed out", "timeout", "resolve", "unreachable", "proxy", "service unavailable")
_LONGEST_S = 480


def judge(stdout: str, stderr: str) -> tuple[int, list[str]]:
    """Turns what pip-audit printed into an exit code and lines for people."""
    try:
        entries: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        if any(word in last.lower() for word in _UNREACHABLE):
            return 0, [f"{SKIPPED} ({last})"]
        return 1, [f"error: pip-audit failed: {last}"]
    unknown = [entry["name"] for entry in entries if "skip_reason" in entry]
    if len(unknown) == len(entries):  # a mirror or proxy that answers in the service's place, and knows nothing
        return 0, [f"{SKIPPED} (it answers for none of {len(entries)} packages)"]
    found = [
        f"{entry['name']} {entry['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for entry in entries
        for fault in entry.get("vulns", [])
    ]
    lines = [*found, f"{len(entries) - len(unknown)} packages audited, {len(found)} known vulnerabilities"]
    if unknown:
        lines.append(f"not audited, unknown to the service: {', '.join(unknown)}")
    return int(bool(found)), lines


def main() -> int:
    """Audits, and returns 1 where a vulnerability is known or the audit itself is broken."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *_COMMAND],
            capture_output=True, text=True, check=False, timeout=_LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{SKIPPED} (no answer within {_LONGEST_S} s)")
        return 0
    code, lines = judge(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
