"""Experiments of a real DVC repository, whose only stage writes the results of a cell from a learning rate."""

import shutil
import subprocess
import sys
from pathlib import Path

import dvc.api as dvc_api
import pytest
from celery.exceptions import ImproperlyConfigured

from efficientllm.cli import main
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.ranking.compare import compare_sets, read_result_set
from efficientllm.ranking.experiments import Experiment, Sweep, _differences, compare_experiments, describe
from efficientllm.ranking.rank import Estimate, ties

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("experiments")]

STAGE = """
import yaml
rate = yaml.safe_load(open("profile.yaml"))["tune"]["rate"]
loss = 1 + abs(rate - 0.004) * 100
print("axis,group,technique,cell,metric,value,ci_low,ci_high,missing_reason")
print(f"tune,tune-small,lora,lora-small,task_loss,{loss},{loss - 0.15},{loss + 0.15},")
print("tune,tune-small,lora,lora-small,task_accuracy,,,,not measured: no task")
"""
PIPELINE = """
stages:
  normalize:
    cmd: mkdir -p results && {python} stage.py > results/results.csv
    deps: [stage.py]
    params: [profile.yaml: [tune], params.yaml: [seed]]
    outs: [results/results.csv]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("experiments")
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable))
    (root / "profile.yaml").write_text("tune: {rate: 0.002, steps: 5}\n")
    (root / "params.yaml").write_text("seed: 0\n")
    dvc = str(Path(sys.executable).parent / "dvc")
    for command in (
        ["git", "init", "-q"], ["git", "config", "user.email", "a@b"], ["git", "config", "user.name", "a"],
        [dvc, "init", "-q"], [dvc, "config", "core.analytics", "false"], [dvc, "repro", "-q"],
        ["git", "add", "-A"], ["git", "commit", "-qm", "first"],
        *([dvc, "exp", "run", "-q", "-n", name, "-S", f"profile.yaml:tune.rate={rate}"]
          for name, rate in (("best", 0.004), ("near", 0.005), ("far", 0.009))),
    ):  # fmt: skip
        subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return root


def test_the_best_comes_first_with_what_it_changed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    sweep = compare_experiments("tune", "lora-small", "task_loss")
    found = sweep.experiments
    assert [entry.name for entry in found[:2]] == ["best", "near"]
    assert len(found) == 4
    assert found[0].estimate is not None
    assert found[0].estimate.value == pytest.approx(1.0)
    assert [entry.changed for entry in found] == [{"tune.rate": rate} for rate in (0.004, 0.005, 0.002, 0.009)]
    lines = describe(sweep, "task_loss")
    assert not any(line.startswith("left out") for line in lines)
    assert lines[0] == "Held-out task loss (nat/token), lower is better"
    assert "best" in lines[1]
    assert "tune.rate=0.004" in lines[1]
    assert lines[-1] == f"best: best; tied with it: near, {found[2].name}"


def test_the_command(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(repository)
    assert main(["sweep", "--axis", "tune", "--cell", "lora-small", "--metric", "loss"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("best: best; tied with it: near, ")
    assert main(["compare", "best", "far", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("tune,tune-small,lora,task_loss,,lower,far,1.5,")


def test_a_missing_value_has_its_reason(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    found = compare_experiments("tune", "lora-small", "task_accuracy")
    assert {entry.reason for entry in found.experiments} == {"not measured: no task"}
    assert not any(line.startswith("best") for line in describe(found, "task_accuracy"))


@pytest.mark.parametrize(
    ("cell", "metric", "message"),
    [
        ("lora-smal", "task_loss", "unknown tune cell 'lora-smal'; did you mean 'lora-small'?"),
        ("lora-small", "task_los", "unknown metric 'task_los'; did you mean 'task_loss'?"),
        ("lora-small", "perplexity", "perplexity is not measured on the axis 'tune'"),
    ],
)
def test_faults(repository: Path, monkeypatch: pytest.MonkeyPatch, cell: str, metric: str, message: str) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(ParameterError) as caught:
        compare_experiments("tune", cell, metric)
    assert message in str(caught.value)


def test_no_experiment_of_an_axis(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(ArtifactError, match="no experiment of this commit has results of the axis 'quantize'"):
        compare_experiments("quantize", "int4-small", "task_loss")


def test_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="the experiments cannot be listed"):
        compare_experiments("tune", "lora-small", "task_loss")


def test_experiments_that_have_not_run_are_left_out(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "queue"
    shutil.copytree(repository, root, symlinks=True)
    monkeypatch.chdir(root)
    dvc = str(Path(sys.executable).parent / "dvc")
    queue = [dvc, "exp", "run", "-q", "--queue", "-S", "profile.yaml:tune.rate=0.0041,0.0042,0.0043"]
    subprocess.run(queue, check=True, capture_output=True, text=True)
    shown = dvc_api.exp_show()
    waiting = [entry for entry in shown if entry["State"] == "Queued"]
    assert len(waiting) == 3
    # a worker would outlive the test
    waiting[0]["State"] = "Failed"
    next(entry for entry in shown if entry["Experiment"] == "near")["State"] = "Success"
    monkeypatch.setattr("dvc.api.exp_show", lambda: shown)
    sweep = compare_experiments("tune", "lora-small", "task_loss")
    assert {entry.name for entry in sweep.experiments} >= {"best", "near", "far"}
    assert len(sweep.experiments) == 4
    assert sweep.left_out == {"failed": 1, "queued": 2}
    assert main(["sweep", "--axis", "tune", "--cell", "lora-small", "--metric", "loss"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "left out, without results of their own: 1 failed, 2 queued"
    with pytest.raises(ArtifactError, match=r"of the axis 'quantize' \(1 failed, 2 queued\): run `dvc exp run`, or"):
        compare_experiments("quantize", "int4-small", "task_loss")


@pytest.mark.parametrize(
    "error", [ImproperlyConfigured("no\npermission"), PermissionError(13, "Denied", ".dvc/tmp/exps")]
)
def test_a_clone_that_may_not_be_written_to(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.chdir(repository)
    monkeypatch.setattr("dvc.api.exp_show", refuse)
    with pytest.raises(ArtifactError, match=r"DVC cannot write to \.dvc/tmp here .*: make it writable") as caught:
        compare_experiments("tune", "lora-small", "task_loss")
    assert "\n" not in str(caught.value)


def test_result_sets_of_experiments_and_commits(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    sets = [read_result_set(name) for name in ("best", "far", "HEAD", ".")]
    loss = next(row for row in compare_sets(sets) if row.metric == "task_loss")
    assert [entry.value for entry in loss.values] == pytest.approx([1.0, 1.5, 1.2, 1.5])
    assert [entry.beyond for entry in loss.values] == [None, True, False, True]
    assert [entry.better for entry in loss.values] == [None, False, False, False]
    with pytest.raises(ParameterError, match="'fra' is no file or folder, and no experiment or commit either"):
        read_result_set("fra")


def test_a_result_set_that_this_clone_does_not_hold(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True, capture_output=True)
    with pytest.raises(ParameterError, match=r"'HEAD' has no results/results\.csv that this clone holds"):
        read_result_set("HEAD", clone)


def test_what_an_experiment_leaves_out_is_no_difference() -> None:
    parameters = {"whole": {"rate": 1, "other.rank": 8}, "narrow": {"rate": 2}}
    assert _differences(parameters) == {"whole": {"rate": 1}, "narrow": {"rate": 2}}


@pytest.mark.parametrize(
    ("best", "other", "tied"),
    [
        (Estimate(1.0, 0.9, 1.1), Estimate(1.2, 1.05, 1.35), True),
        (Estimate(1.0, 1.0, 1.0), Estimate(1.0009, 1.0009, 1.0009), True),  # by less than the resolution
        (Estimate(1.0, 0.9, 1.1), Estimate(1.05), True),  # a value without an interval is a point
        (Estimate(1.0), Estimate(1.0), True),
        (Estimate(1.0), Estimate(1.0001), False),
        (Estimate(1.0, 0.9, 1.1), None, False),
    ],
)
def test_a_sweep_ties_what_a_ranking_does(best: Estimate, other: Estimate | None, tied: bool) -> None:
    sweep = Sweep([Experiment("one", best, None, {}), Experiment("two", other, "not measured", {})], {})
    assert describe(sweep, "task_loss")[-1] == "best: one" + ("; tied with it: two" if tied else "")
    assert ties([best, other])[0] == ((1,) if tied else ())
