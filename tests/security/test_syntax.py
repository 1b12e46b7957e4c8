"""What no source of this repository may do, read off its syntax trees: tests, scripts and benchmarks included."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\0")
SOURCES = [name for name in LISTED if name and (ROOT / name).is_file()]

_PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
_UNSAFE_READERS = {"yaml"}  # PyYAML's load builds objects, and it reads YAML 1.1, where DVC and ruamel.yaml read 1.2
_BUILTINS = {"eval", "exec", "compile", "__import__"}
_SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "os.spawnl", "os.spawnlp"}
_PROCESSES = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}
_OBJECTS = {"torch.save", "torch.hub.load", "torch.package.PackageImporter"}

ALLOWED = {
    "scripts/corpus/packages.py": "bundle.extractall without a filter",  # zipfile's own: it drops roots and `..`
    "tests/data/test_packing.py": "allow_pickle",  # writes the file that must be refused
    "tests/data/test_tokenizer.py": "without trust_remote_code=False",  # what the test itself has written
    "tests/models/test_transformers_adapter.py": "without trust_remote_code=False",
}


def faults(text: str) -> Iterator[str]:
    """Names each forbidden construct of a module, with its line."""
    tree = ast.parse(text)
    aliases = dict(_aliases(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (
                f"line {node.lineno}: imports {name}"
                for name in names
                if name.partition(".")[0] in _PICKLING | _UNSAFE_READERS
            )
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {fault}" for fault in _faults_of_call(node, aliases))


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a module calls things, and what they are called in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _called(node: ast.expr, aliases: dict[str, str]) -> str:
    first, _, rest = ast.unparse(node).partition(".")
    return ".".join(filter(None, (aliases.get(first, first), rest)))


def _faults_of_call(node: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = _called(node.func, aliases)
    keywords = {entry.arg: entry.value for entry in node.keywords}

    def given(key: str, value: object) -> bool:
        return isinstance(keywords.get(key), ast.Constant) and keywords[key].value == value  # type: ignore[attr-defined]

    if name in _BUILTINS | _SHELLS | _OBJECTS:
        yield f"calls {name}"
    if name == "torch.load" and not given("weights_only", True):
        yield "torch.load without weights_only=True"
    if name in ("numpy.load", "np.load") and not given("allow_pickle", False):
        yield "numpy.load without allow_pickle=False"
    if "allow_pickle" in keywords and not given("allow_pickle", False):
        yield "allow_pickle"
    if name.rpartition(".")[2] in ("read_pickle", "to_pickle") or name.endswith(("_object", "_object_list")):
        yield f"{name} pickles"
    if "trust_remote_code" in keywords and not given("trust_remote_code", False):
        yield "trust_remote_code"
    if name.endswith(".from_pretrained") and "Auto" in name and not given("trust_remote_code", False):
        yield f"{name} without trust_remote_code=False"
    if "shell" in keywords and not given("shell", False):
        yield "a shell"
    if name in _PROCESSES and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
        yield f"{name} of a string"
    if name.endswith((".extractall", "unpack_archive")) and not isinstance(keywords.get("filter"), ast.Constant):
        yield f"{name} without a filter"
    if name.endswith("YAML") and not (given("typ", "safe") or (not keywords and not node.args)):
        yield "a YAML reader that is not safe"


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_forbidden(source: str) -> None:
    found = list(faults((ROOT / source).read_text(encoding="utf-8")))
    allowed = ALLOWED.get(source)
    assert [fault for fault in found if allowed is None or allowed not in fault] == []
    assert allowed is None or found, "nothing is left that needs to be allowed"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from dill import loads", "import cloudpickle as c", "torch.load(p)", "import torch as t; t.load(p)",
        "from torch import load; load(p, weights_only=False)", "torch.save(m, p)", "eval(t)", "exec(t)", "compile(t, 'f', 'exec')",
        "numpy.load(p)", "import numpy as np; np.load(p, allow_pickle=True)", "pandas.read_pickle(p)",
        "import torch.distributed as dist; dist.all_gather_object(a, b)", "f(trust_remote_code=True)", "f(trust_remote_code=flag)",
        "AutoTokenizer.from_pretrained(p)", "os.system(c)", "from os import popen; popen(c)", "subprocess.run(c, shell=True)",
        "import subprocess as s; s.run(f'ls {x}')", "archive.extractall(p)", "YAML(typ='unsafe')", "import yaml",
    ],
)  # fmt: skip
def test_the_rules_find(line: str) -> None:
    assert list(faults(line))


def test_the_rules_find_nothing_in_what_is_safe() -> None:
    safe = """
import subprocess, re, torch, numpy as np
torch.load(p, weights_only=True)
np.load(p, allow_pickle=False, mmap_mode="r")
AutoTokenizer.from_pretrained(p, trust_remote_code=False)
subprocess.run(["ls", x], check=True)
model.eval()
re.compile("x")
YAML(typ="safe").load(t)
"""
    assert not list(faults(safe))
