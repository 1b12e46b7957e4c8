"""Rules that hold for every tracked file."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\0")
FILES = [ROOT / name for name in LISTED if name and (ROOT / name).is_file()]
SOURCES = [path for path in FILES if path.suffix == ".py" and not path.is_relative_to(ROOT / "tests")]


def test_no_download_address_is_tracked() -> None:
    addresses = re.compile(r"https?://[\w.-]*(pypi|pythonhosted|download\.pytorch|huggingface\.co|npmjs|debian)\b")
    assert not [path for path in FILES if addresses.search(path.read_text(encoding="utf-8", errors="ignore"))]


def test_text_is_utf8_and_files_are_small() -> None:
    for path in FILES:
        # a published report carries its tables, records and figures within itself
        limit = (4 if path.is_relative_to(ROOT / "reports" / "published") else 1) << 20
        assert path.stat().st_size < limit, f"{path} is large: DVC should hold it"
        if path.suffix != ".png":
            path.read_text(encoding="utf-8")


def test_modules_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES
        if path.is_relative_to(ROOT / "efficientllm") or path.is_relative_to(ROOT / "stages")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long


def test_constraints_lock_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "name==version only"
    locked = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [")[1].split("]\n")[0] + text.split("dev = [")[1].split("]\n")[0]
    wanted = {name.lower() for name in re.findall(r'^\s*"([A-Za-z0-9._-]+)', block, re.MULTILINE)}
    assert wanted <= locked, wanted - locked
