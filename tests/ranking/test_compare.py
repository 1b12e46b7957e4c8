"""Result sets side by side."""

import subprocess
from pathlib import Path

import pytest

from efficientllm.errors import ArtifactError, DataError, ParameterError
from efficientllm.files import whole_directory
from efficientllm.ranking.compare import ResultSet, compare_sets, read_result_set, select
from efficientllm.ranking.tidy import parse_tidy

HEADER = "axis,group,technique,metric,value,unit,direction,source,ci_low,ci_high,missing_reason\n"


def result_set(name: str, *lines: str) -> ResultSet:
    parsed = parse_tidy((HEADER + "\n".join(lines) + "\n").encode(), name)
    return ResultSet(name, {(line.axis, line.group, line.technique, line.metric): line for line in parsed})


def pair(first: str, second: str):
    place = "tune,g,lora,average_latency,"
    found = compare_sets([result_set("a", place + first), result_set("b", place + second)])
    assert len(found) == 1
    return found[0].values[1]


def test_difference_ratio_and_whether_it_is_beyond_the_intervals() -> None:
    far = pair("2,s,lower,measured,1.9,2.1,", "1,s,lower,measured,0.9,1.1,")
    assert (far.difference, far.ratio, far.beyond, far.better) == (-1.0, 0.5, True, True)
    near = pair("2,s,lower,measured,1.9,2.1,", "2.1,s,lower,measured,2.0,2.2,")
    assert (near.beyond, near.better) == (False, False)
    assert near.ratio == pytest.approx(1.05)
    assert pair("2,s,lower,,1.9,2.1,", "3,s,lower,,,,").beyond is True, "a bare value beside an interval"
    assert pair("2,s,lower,,,,", "3,s,lower,,,,").beyond is None, "without any interval nothing can be said"
    same = pair("2,s,lower,,1,3,", "2,s,lower,,1,3,")
    assert (same.difference, same.beyond, same.better) == (0.0, False, None)


def test_ratio_only_where_it_means_something() -> None:
    assert pair("0,s,lower,,,,", "1,s,lower,,,,").ratio is None
    assert pair("-1,s,lower,,,,", "1,s,lower,,,,").ratio is None
    assert pair("-1,s,lower,,,,", "-2,s,lower,,,,").ratio == 2.0
    assert pair("1e-300,s,lower,,,,", "1e150,s,lower,,,,").ratio is None


def test_missing_values_keep_their_reason() -> None:
    gone = pair("2,s,lower,measured,1.9,2.1,", ",s,lower,,,,failed: out of memory")
    assert (gone.value, gone.difference, gone.beyond, gone.reason) == (None, None, None, "failed: out of memory")


def test_rows_that_only_one_set_has_and_three_sets() -> None:
    found = compare_sets(
        [
            result_set("a", "tune,g,lora,average_latency,1,s,lower,,,,"),
            result_set("b", "tune,g,dora,average_latency,3,s,lower,,,,", "tune,g,lora,average_latency,2,s,lower,,,,"),
            result_set("c", "tune,g,dora,average_latency,4,s,lower,,,,"),
        ]
    )
    assert [(row.technique, [entry.value for entry in row.values]) for row in found] == [
        ("lora", [1.0, 2.0, None]), ("dora", [None, 3.0, 4.0]),
    ]  # fmt: skip
    assert found[0].values[2].reason == "not in this set"
    assert found[1].values[1].difference is None, "there is nothing to differ from"


def test_units_and_directions_must_agree() -> None:
    with pytest.raises(DataError, match="average_latency: its unit is 's' in a, but 'ms' in b"):
        pair("2,s,lower,,,,", "2,ms,lower,,,,")
    with pytest.raises(DataError, match="its direction is 'lower' in a, but 'higher' in b"):
        pair("2,s,lower,,,,", "2,s,higher,,,,")


def test_where_a_name_leads(tmp_path: Path) -> None:
    text = HEADER + "tune,g,lora,average_latency,1,s,lower,,,,\n"
    (tmp_path / "clone" / "results").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (tmp_path / "empty").mkdir()
    for path in ("clone/results/results.csv", "set/results.csv", "other.csv"):
        (tmp_path / path).write_text(text)
    for name in ("clone", "clone/results", "set", "set/results.csv", "other.csv"):
        found = read_result_set(str(tmp_path / name))
        assert found.name == str(tmp_path / name)
        assert list(found.lines) == [("tune", "g", "lora", "average_latency")]
    with pytest.raises(ParameterError, match=r"empty holds no results\.csv, nor results/results\.csv"):
        read_result_set(str(tmp_path / "empty"))
    (tmp_path / "models.csv").write_text("group,technique,model,metric,value\ng,a,m,loss,1\ng,a,n,loss,1\n")
    with pytest.raises(DataError, match="has several models per technique"):
        read_result_set(str(tmp_path / "models.csv"))


def test_a_set_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    line = "tune,g,lora,average_latency,1,s,lower,,,,\n"
    with whole_directory(tmp_path / "set") as folder:
        (folder / "results.csv").write_text(HEADER + line)
    read_result_set(str(tmp_path / "set"))
    (tmp_path / "set" / "results.csv").write_text(HEADER + line.replace("1,s", "2,s"))
    for name in ("set", "set/results.csv"):
        with pytest.raises(
            ArtifactError, match=r"set/results\.csv is damaged: restore .*set, for example by `git checkout`"
        ):
            read_result_set(str(tmp_path / name))


def test_only_an_axis_and_metrics_that_are_there() -> None:
    metric = "latency_" + "x" * 5000
    found = compare_sets([result_set(name, f"tune,g,lora,{metric},1,s,lower,,,,") for name in "ab"])
    assert select(found, "tune", [metric]) == select(found, None, ()) == found
    for axis, metrics in (("tun", ()), ("", ()), (None, ["latency"])):
        with pytest.raises(ParameterError, match=r"^unknown (axis|metric)") as caught:
            select(found, axis, metrics)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["HEAD:file", "HEAD:", "HEAD^{tree}"])
def test_a_name_that_leads_into_a_commit(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    for command in (
        ["init", "-q"],
        ["add", "file"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    with pytest.raises(ParameterError, match=r"is a file or folder within a commit: name a commit as HEAD") as caught:
        read_result_set(name, tmp_path)
    assert repr(name) in str(caught.value)


@pytest.mark.slow
def test_a_name_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match="'nothing'"):
        read_result_set("nothing")
