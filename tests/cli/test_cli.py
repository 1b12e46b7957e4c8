"""The command as its users type it: output for people and programs, one-line errors, a quick start."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from efficientllm.cli import main
from efficientllm.cli.commands import text_table

ROOT = Path(__file__).parents[2]
ATTENTION = ROOT / "tests" / "ranking" / "data" / "paper_attention.csv"
COMMANDS = ("check", "doctor", "rank", "compare", "sweep", "export-records", "import-records", "verify", "publish")
HEAVY = {
    "torch", "pandas", "numpy", "scipy", "transformers", "peft", "pydantic", "jinja2", "dvc", "matplotlib", "ruamel", "codecarbon",
}  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{7*1913}}"
TABLE = "group,technique,metric,value,ci_low,ci_high,n\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_quick_and_complete(arguments: list[str]) -> None:
    done = python(
        "import sys\nfrom efficientllm.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stderr.split())
    if arguments == ["--help"]:
        assert all(command in done.stdout for command in COMMANDS)


def test_ranking_as_csv_has_the_documented_columns(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "rank", str(ATTENTION), "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert out.splitlines()[0] == "axis,group,technique,metric,value,normalized,rank,tied,tier"
    assert len(lines) == 16
    ppl = {line["technique"]: (line["rank"], line["tier"]) for line in lines if line["metric"] == "PPL"}
    assert ppl == {"MQA": ("4", "low"), "GQA": ("3", "medium"), "MLA": ("1", "high"), "NSA": ("2", "medium")}
    assert {line["axis"] for line in lines} == {"pretrain"}


def test_ranking_as_json_is_strict_and_complete(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "g,a,loss,1,0.5,1.5,3\ng,b,loss,2,1.4,2.6,3\ng,c,loss,,,,\n")
    code, out, _ = run(capsys, "rank", str(tmp_path / "t.csv"), "--format", "json", "--weights", "loss=2")
    content = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0
    assert content["weights"] == {"loss": 2.0}
    (group,) = content["groups"]
    assert group["pareto_front"] == ["a"]
    standings = {(line["metric"], line["technique"]): line for line in group["standings"]}
    assert standings["loss", "a"]["tied_with"] == ["b"]
    assert 0.5 < standings["loss", "a"]["stability"] < 1
    assert standings["loss", "c"] | {"reason": ""} == {
        "metric": "loss", "direction": "lower", "unit": "", "technique": "c", "value": None, "ci_low": None, "ci_high": None,
        "normalized": None, "rank": None, "tied": False, "tied_with": [], "tier": None, "stability": None, "reason": "",
    }  # fmt: skip
    assert standings["score", "b"]["value"] == pytest.approx(0.1)


def test_ranking_as_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "g,a,loss,1,0.5,1.5,3\ng,bee,loss,2,1.4,2.6,3\ng,c,loss,,,,\n")
    code, out, _ = run(capsys, "rank", str(tmp_path / "t.csv"))
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "g"
    assert lines[1].split() == ["technique", "loss", "(lower)", "Pareto", "front"]
    assert lines[2].split()[:3] == ["a", "1", "1="]
    assert lines[4].split() == ["c", "-", "-"]
    assert "  c: loss: no value" in lines


@pytest.mark.parametrize(("form", "shown"), [("table", "1 99.9%"), ("html", "rank holds in 99.9 %")])
def test_a_rank_that_holds_nearly_always_does_not_hold_always(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str, shown: str
) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "g,a,loss,1,0.5,1.5,9\ng,b,loss,2.2,1.7,2.7,9\n")
    content = json.loads(run(capsys, "rank", str(tmp_path / "t.csv"), "--format", "json")[1])
    assert all(0.995 < line["stability"] < 1 for line in content["groups"][0]["standings"])
    assert shown in run(capsys, "rank", str(tmp_path / "t.csv"), "--format", form)[1]


def test_a_table_of_many_metrics_has_a_line_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ("train_loss", "test_loss", "perplexity", "accuracy", "latency", "memory", "energy", "power", "throughput")
    rows = "".join(f"g,{technique},{name},1,,,\n" for name in names for technique in ("a", "b"))
    (tmp_path / "t.csv").write_text(TABLE + rows)
    lines = run(capsys, "rank", str(tmp_path / "t.csv"))[1].splitlines()
    assert lines[1].split() == ["metric", "a", "b"]
    assert lines[2].split() == ["train_loss", "(lower)", "1", "1=", "1", "1="]
    assert lines[11].split() == ["Pareto", "front", "yes", "yes"]


def test_columns_that_do_not_fit_a_terminal_follow_below() -> None:
    heads, rows = ["metric", *(f"method {number}" for number in range(5))], [["loss", *"12345"], ["energy", *"67890"]]
    lines = text_table(heads, rows, width=30)
    assert max(map(len, lines)) <= 30
    assert [line.split() for line in lines if line.startswith("loss")] == [
        ["loss", "1", "2"],
        ["loss", "3", "4"],
        ["loss", "5"],
    ]
    assert lines.count("") == 2
    assert (
        len(text_table(heads, rows, width=1)) == 5 * 3 + 4
    )  # a column that is wider than the terminal has lines of its own
    assert len(text_table(heads, rows)) == 3


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def assert_self_contained(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "iframe", "object", "img"} & {tag for tag, _ in elements.tags}
    policy = next(attributes["content"] for tag, attributes in elements.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none';") and "script-src" not in policy
    for tag, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    assert "http://" not in page and "https://" not in page and "url(" not in page
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")


def hostile_table(path: Path) -> Path:
    rows = [["group", "technique", "metric", "value", "ci_low", "ci_high", "direction", "unit", "missing_reason"]]
    rows += [[HOSTILE, f"{HOSTILE}{name}", HOSTILE, value, low, high, "lower", HOSTILE, HOSTILE]
             for name, value, low, high in (("a", "1", "0.5", "2"), ("b", "1.5", "0.5", "2"), ("c", "", "", ""))]  # fmt: skip
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_html_is_self_contained_and_escapes_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = hostile_table(tmp_path / "t<b>.csv")
    for arguments in (["rank", str(path), "--weights", f"{HOSTILE}=2"], ["compare", str(path), str(path)]):
        code, out, _ = run(capsys, *arguments, "--format", "html")
        assert code == 0
        assert_self_contained(out)
        assert HOSTILE in Elements(out).text, "the name is shown as text"
        assert "<b>" not in out and "13391" not in Elements(out).text.replace("{{7*1913}}", "")


def test_html_of_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "rank", str(ATTENTION), "--format", "html")
    assert code == 0
    assert_self_contained(out)
    assert out == run(capsys, "rank", str(ATTENTION), "--format", "html")[1]
    tags = Elements(out).tags
    assert [attributes.get("scope") for tag, attributes in tags if tag == "th"] == ["col"] * 6 + ["row"] * 4
    assert sum(attributes.get("class", "") in ("chip high", "chip medium", "chip low") for _, attributes in tags) >= 16


def test_formulas_of_others_stay_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "group,technique,metric,value\n=g,=cmd|' /C calc'!A0,loss,-1\n=g,@b,loss,-2\n=g,-x,loss,3\n=g,-1,loss,4\n"
    )
    _, out, _ = run(capsys, "rank", str(tmp_path / "t.csv"), "--format", "csv")
    lines = list(csv.reader(io.StringIO(out)))
    assert [line[2] for line in lines[1:]] == ["'=cmd|' /C calc'!A0", "'@b", "'-x", "-1"]
    assert {line[1] for line in lines[1:]} == {"'=g"}
    assert [line[4] for line in lines[1:]] == ["-1.0", "-2.0", "3.0", "4.0"]
    (tmp_path / "again.csv").write_text(out)
    assert run(capsys, "rank", str(tmp_path / "again.csv"), "--format", "csv")[1] == out


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "does not exist"),
        ("", [], "is empty"),
        ("group,technique,value\ng,a,1\n", [], "lacks the column 'metric'"),
        (TABLE + "g,a,loss,abc,,,\n", [], "line 2, column 'value': 'abc' is not a number"),
        (TABLE + "g,a,loss,nan,,,\n", [], "nan is no figure to rank"),
        (TABLE + "g,a,loss,1,3,2,\n", [], "ci_low 3 is above ci_high 2"),
        (TABLE + "g,a,loss,1,,,\ng,a,loss,1,,,\n", [], "line 3 repeats line 2"),
        (TABLE + "g,a,colour,1,,,\n", [], "column 'metric': it is not known whether lower or higher is better for 'colour'"),
        (TABLE + "g,a,loss,1,,,\n", ["--weights", "los=1"], "did you mean 'loss'?"),
        (TABLE + "g,a,loss,1,,,\n", ["--pareto", "los"], "did you mean 'loss'?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content, arguments, message
) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_text(content)
    code, out, err = run(capsys, "rank", str(path), *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_no_traceback_where_the_reader_stops(tmp_path: Path) -> None:
    many = "".join(f"g{index},a,loss,1,,,\n" for index in range(20000))
    (tmp_path / "t.csv").write_text(TABLE + many)
    command = f'"{sys.executable}" -m efficientllm.cli rank "{tmp_path}/t.csv" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr) == ("g0\n", "")


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    header = "axis,group,technique,metric,value,unit,direction,source,ci_low,ci_high,missing_reason\n"
    texts = {
        "a": "tune,s,lora,average_latency,2,s,lower,measured,1.9,2.1,\ntune,s,dora,average_latency,4,s,lower,measured,3.9,4.1,\n",
        "b": "tune,s,lora,average_latency,1,s,lower,measured,0.9,1.1,\ntune,s,dora,average_latency,,s,lower,,,,failed: out of memory\n"
        "pretrain,attention,mqa,perplexity,7,,lower,measured,,,\n",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(header + text)
    return [str(tmp_path / name) for name in texts]


def test_comparison_in_all_formats(capsys: pytest.CaptureFixture[str], sets: list[str]) -> None:
    code, out, _ = run(capsys, "compare", *sets)
    assert code == 0
    assert any(
        line.split()[:2] == ["lora", "average_latency"] and line.endswith("0.5x  better") for line in out.splitlines()
    )
    assert f"  {sets[1]}: dora, average_latency: failed: out of memory" in out.splitlines()
    assert out.splitlines()[-1].startswith(f"1 of 1 values differ from {sets[0]} by more than")
    _, out, _ = run(capsys, "compare", *sets, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert len(lines) == 6
    assert (lines[1]["set"], lines[1]["ratio"], lines[1]["beyond_intervals"], lines[1]["better"]) == (
        sets[1],
        "0.5",
        "true",
        "true",
    )
    _, out, _ = run(capsys, "compare", *sets, "--format", "json")
    content = json.loads(out)
    assert content["compared_with"] == sets[0]
    assert content["rows"][0]["values"][1]["difference"] == -1.0
    assert content["rows"][2]["values"][0]["missing_reason"] == "not in this set"
    _, out, _ = run(capsys, "compare", *sets, "--format", "html")
    assert_self_contained(out)


def test_comparison_of_one_axis_and_metric(capsys: pytest.CaptureFixture[str], sets: list[str]) -> None:
    _, out, _ = run(capsys, "compare", *sets, "--axis", "pretrain", "--format", "csv")
    assert {line["metric"] for line in csv.DictReader(io.StringIO(out))} == {"perplexity"}
    _, out, _ = run(capsys, "compare", *sets, "--metric", "average_latency", "--format", "csv")
    assert {line["metric"] for line in csv.DictReader(io.StringIO(out))} == {"average_latency"}
    code, _, err = run(capsys, "compare", *sets, "--metric", "average_latenc")
    assert (code, err.split(";")[1].strip()) == (
        1,
        "did you mean 'average_latency'? known: average_latency, perplexity",
    )


def test_sweep_names_faults_before_it_looks_for_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "sweep", "--axis", "tun", "--cell", "lora-small", "--metric", "loss")
    assert code == 1
    assert err == "error: unknown axis 'tun'; did you mean 'tune'? known: pretrain, quantize, tune\n"
    code, _, err = run(capsys, "sweep", "--axis", "tune", "--cell", "lora-small", "--metric", "los")
    assert (code, err.startswith("error: unknown metric 'los'; known: ")) == (1, True)


def test_records_are_exported_and_imported(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_dvc_root: Callable[[Path], Path],
) -> None:
    import hashlib

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    clone, other = tmp_path / "clone", tmp_path / "other"
    for root in (clone, other):
        make_dvc_root(root)
    cache = clone / ".dvc" / "cache"
    name = md5(b"{}")
    for path, content in (
        (cache / "files" / "md5" / name[:2] / name[2:], b"{}"),
        (
            cache / "runs" / "ab" / ("ab" + "0" * 62) / ("1" * 64),
            b"cmd: python -m stages.measure --axis tune --cell lora-small\n"
            + f"deps:\n- path: hardware.json\n  md5: {md5(b'H')}\n".encode()
            + f"outs:\n- path: artifacts/measure/tune/lora-small.json\n  md5: {name}\n".encode(),
        ),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    monkeypatch.chdir(clone)
    archive = str(tmp_path / "records.tar.gz")
    assert run(capsys, "export-records", archive) == (0, f"1 record in {archive}\n", "")
    monkeypatch.chdir(other)
    code, out, _ = run(capsys, "import-records", archive)
    assert code == 0
    assert out.splitlines()[:2] == [
        "1 record imported",
        "whether they are from this kind of machine is not known until `dvc repro probe` has written hardware.json",
    ]
    (other / "hardware.json").write_bytes(b"another")
    assert (
        "1 of them was measured on different hardware than hardware.json describes"
        in run(capsys, "import-records", archive)[1]
    )
    (other / "hardware.json").write_bytes(b"H")
    assert "different hardware" not in run(capsys, "import-records", archive)[1]
    code, _, err = run(capsys, "import-records", "none.tar.gz")
    assert (code, err) == (1, "error: none.tar.gz does not exist\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "export-records", archive)
    assert (code, err.startswith(f"error: {tmp_path} is no root of a DVC repository")) == (1, True)


def test_publish_without_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "publish")
    assert code == 1
    assert err == "error: params.yaml does not exist: restore it, for example by `git checkout params.yaml`\n"
    code, _, err = run(capsys, "publish", "--index")
    assert (code, err.startswith("error: reports/published holds no published set to list: ")) == (1, True)
    code, _, err = run(capsys, "publish", "name", "--index")
    assert (code, err.count("\n")) == (1, 1)


def test_check_lists_the_cells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = run(capsys, "check")
    assert code == 0
    assert "lora-small" in out and "dense_medium" in out
