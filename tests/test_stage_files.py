"""The stages are in the files where the code looks for them."""

import subprocess
from pathlib import Path

from efficientllm import paths, pipeline
from efficientllm.config.load import read_yaml
from efficientllm.telemetry import CURVE_FILE

ROOT = Path(__file__).parents[1]


def test_addresses_are_those_of_dvc(listed_stages: list[str]) -> None:
    names = [pipeline.name(address) for address in listed_stages]
    assert [pipeline.address(name) for name in names] == listed_stages
    assert len(set(names)) == len(names) > 90, "a name alone says which stage it is"
    assert {"report", "base@small", "measure_tune@lora-small", "quantize@int4-large"} <= set(names)


def test_locks_are_beside_the_definitions() -> None:
    tracked = subprocess.run(["git", "ls-files", "*dvc.yaml"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert sorted(str(lock.with_suffix(".yaml")) for lock in pipeline.LOCKS) == sorted(tracked.stdout.split())


def test_the_curves_of_all_training_runs_are_plotted() -> None:
    chosen = read_yaml(ROOT / "params.yaml")
    runs = [("pretrain", name) for name in chosen["architectures"]]
    runs += [("tune", f"{method}-{size}") for method in chosen["methods"] for size in chosen["sizes"]]
    plots = read_yaml(ROOT / "dvc.yaml")["plots"]
    plotted = [curve for plot in plots for title, axes in plot.items() if title.endswith("loss") for curve in axes["y"]]
    assert sorted(set(plotted)) == sorted(str(paths.telemetry(axis, cell) / CURVE_FILE) for axis, cell in runs)


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert pipeline.read_lock(lock) == {}
    for empty in ("", "schema: '2.0'\n", "schema: '2.0'\nstages:\n"):
        lock.write_text(empty)
        assert pipeline.read_lock(lock) == {}
    stages = {
        "tune@lora-small": {"cmd": "t", "outs": [{"path": "a", "md5": "0"}], "params": {"params.yaml": {"seed": 0}}}
    }
    pipeline.write_lock(lock, stages)
    assert pipeline.read_lock(lock) == stages
    assert lock.read_text().startswith("schema: '2.0'\n")
