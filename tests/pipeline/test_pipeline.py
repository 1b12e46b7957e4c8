"""From raw text to the report, and what runs again when something changes."""

import csv
import json

import pytest
from project import Project

from efficientllm import paths
from efficientllm.config import load
from efficientllm.metrics import measured_metrics
from efficientllm.records import read_record

pytestmark = pytest.mark.slow


def test_every_cell_is_measured(finished: Project) -> None:
    configuration = load(finished.root)
    for row in configuration.rows():
        record = read_record(finished.root / paths.record(row.axis, row.cell))
        assert record.status == "ok", f"{row.axis}@{row.cell}: {record.reason}"
        assert set(record.metrics) | set(record.missing) >= {metric.key for metric in measured_metrics(row.axis)}
        for key, value in record.metrics.items():
            if key not in ("task_accuracy", "exact_match", "perplexity_change", "task_accuracy_change"):
                assert value.value > 0, f"{row.cell}: {key} is {value.value}"
        assert record.metrics["processor_compute_utilization"].value <= 101
        assert record.metrics["energy_per_token"].source in ("measured", "modelled")
        assert min(record.information["seconds"].values()) >= 0
        assert sum(record.information["seconds"].values()) > 3 * record.metrics["energy_per_token"].window_s
    stages = Project.stages_run((finished.root.parent / "repro.log").read_text())
    cells = len({(row.axis, row.cell) for row in configuration.rows()})
    expected = 2 * cells + len(configuration.parameters.sizes) + 4
    assert len(stages) == expected, "probe, prepare, normalize, report, a base per size, and two stages per cell"


def test_compared_rows_did_the_same_work(finished: Project) -> None:
    """Rows of a group must have processed the same samples and tokens per call."""
    groups: dict[str, set[tuple[object, object]]] = {}
    for row in load(finished.root).rows():
        record = read_record(finished.root / paths.record(row.axis, row.cell))
        workload = record.information["serving" if row.axis == "quantize" else "training"]
        repeats = zip(
            record.metrics["sample_throughput"].repeats, record.metrics["average_latency"].repeats, strict=True
        )
        samples = {round(rate * seconds, 6) for rate, seconds in repeats}
        groups.setdefault(row.group, set()).update((workload["tokens_per_call"], count) for count in samples)
    assert all(len(work) == 1 for work in groups.values()), groups


def test_compared_architectures_have_the_same_size(finished: Project) -> None:
    for row in load(finished.root).rows():
        if row.axis == "pretrain":
            record = read_record(finished.root / paths.record("pretrain", row.cell))
            dense = read_record(finished.root / paths.record("pretrain", f"dense_{record.size}"))
            assert record.model is not None
            assert dense.model is not None
            assert abs(record.model.parameters_active / dense.model.parameters_active - 1) <= 0.02, row.cell


def test_quantized_artifacts_are_smaller(finished: Project) -> None:
    for size in load(finished.root).parameters.sizes:
        models = {
            precision: read_record(finished.root / paths.record("quantize", f"{precision}-{size}")).model
            for precision in ("bfloat16", "float16", "int4")
        }
        assert models["bfloat16"].bytes_on_disk == models["float16"].bytes_on_disk
        assert models["int4"].bytes_on_disk < models["bfloat16"].bytes_on_disk
        assert models["int4"].bytes_in_memory < models["bfloat16"].bytes_in_memory


def test_others_are_compared_with_bfloat16_as_its_own_cell_evaluates_it(finished: Project) -> None:
    for size in load(finished.root).parameters.sizes:
        records = {
            precision: read_record(finished.root / paths.record("quantize", f"{precision}-{size}"))
            for precision in ("bfloat16", "float16", "int4")
        }
        expected = records["bfloat16"].metrics["perplexity"].value
        for record in records.values():
            compared_with = record.information["compression"]["perplexity_bfloat16"]
            assert compared_with == pytest.approx(expected, rel=1e-9)
            change = record.metrics["perplexity"].value - compared_with
            assert record.metrics["perplexity_change"].value == pytest.approx(change, abs=1e-9)
    # evaluated once for each size: what the others are compared with has the very weights of the stored bfloat16 model
    kept = list((finished.root / paths.evaluation("any").parent).iterdir())
    assert len(kept) == len(load(finished.root).parameters.sizes)


def test_tables_and_report(finished: Project) -> None:
    rows = load(finished.root).rows()
    with (finished.root / "results" / "ranking.csv").open(newline="") as stream:
        ranked = list(csv.DictReader(stream))
    assert {(line["group"], line["technique"]) for line in ranked} == {(row.group, row.technique) for row in rows}
    page = (finished.root / "reports" / "index.html").read_text()
    assert all(row.label in page for row in rows)
    assert "modelled" in page
    assert str(finished.root) not in page, "a machine's path is in the report"


def test_dvc_shows_metrics_and_plots(finished: Project) -> None:
    metrics = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)
    values = metrics[""]["data"]["results/metrics.json"]["data"]
    assert {"pretrain", "tune", "quantize"} <= set(values)
    finished.run("dvc", "plots", "show", "--out", str(finished.root.parent / "plots"))
    assert (finished.root.parent / "plots" / "index.html").stat().st_size > 10_000


def test_nothing_runs_again_but_the_probe(finished: Project) -> None:
    assert Project.stages_run(finished.run("dvc", "repro").stdout) == ["probe"]


def test_another_method_runs_quantization_only(finished: Project) -> None:
    output = finished.run("dvc", "exp", "run", "-n", "with-dora", "-S", "method=dora").stdout
    ran = {stage.split("@")[0] for stage in Project.stages_run(output)}
    assert ran == {"probe", "quantize", "measure_quantize", "normalize", "report"}
    shown = json.loads(finished.run("dvc", "exp", "show", "--json").stdout)
    named = {
        entry["name"]: experiment
        for entry in shown
        for experiment in [entry, *(revision for group in entry.get("experiments") or [] for revision in group["revs"])]
    }
    assert named, "dvc exp show lists nothing"
    finished.run("git", "reset", "-q", "--hard")
    finished.run("dvc", "checkout", "-q")
    assert Project.stages_run(finished.run("dvc", "repro").stdout) == ["probe"]


_MEASURES = {"measure_pretrain", "measure_tune", "measure_quantize"}


@pytest.mark.parametrize(
    "edits",
    [  # edits of one example have no stage in common, so that each shows what it runs; each: path, old, new, stages
        [
            (
                "profiles/smoke.yaml",
                "trainable_layers: 1",
                "trainable_layers: 2",
                {"tune@freeze", "measure_tune@freeze"},
            ),
            ("efficientllm/components/mixers/mqa.py", '"""', '"""An edit. ', {"pretrain@mqa", "measure_pretrain@mqa"}),
            ("efficientllm/tuning/methods/dora.py", '"""DoRA', '"""An edit. DoRA', {"tune@dora", "measure_tune@dora"}),
            ("efficientllm/metrics.py", '"""The metric', '"""An edit. The metric', {"normalize", "report"}),
            ("efficientllm/config/schema.py", '"""The parameters', '"""An edit. The parameters', set()),
        ],
        [
            ("profiles/smoke.yaml", "cooldown_seconds: 0.0", "cooldown_seconds: 0.1", _MEASURES),
            ("efficientllm/registry.py", '"""Every row', '"""An edit. Every row', {"normalize", "report"}),
        ],
        [
            ("efficientllm/measurement/protocol.py", "_STABLE = 0.02", "_STABLE = 0.03", _MEASURES),
            ("efficientllm/reporting/templates/style.css", "{", "{ ", {"report"}),
        ],
        [
            (
                "efficientllm/measurement/statistics.py",
                "NOISY =",
                "NOISY  =",
                {"base", "normalize", "report", *_MEASURES},
            ),
        ],
        [
            ("efficientllm/measurement/quality.py", '"""Quality', '"""An edit. Quality', {"base", *_MEASURES}),
        ],
        [
            (
                "efficientllm/tuning/tune.py",
                '"""Tuning',
                '"""An edit. Tuning',
                {"tune", "quantize", "measure_tune", "measure_quantize"},
            ),
        ],
        [  # by which quality is evaluated too, of quantized models as well as of the others that they are compared with
            (
                "efficientllm/training/losses.py",
                '"""',
                '"""An edit. ',
                {"pretrain", "base", "tune", *_MEASURES},
            ),
        ],
        [  # of which the bases are made
            (
                "efficientllm/components/mixers/gqa.py",
                '"""',
                '"""An edit. ',
                {"pretrain", "base", "tune", "quantize", *_MEASURES},
            ),
        ],
        [
            ("efficientllm/records.py", '"""', '"""An edit. ', {"normalize", "report"}),
        ],
    ],
    ids=[
        "trainings and metrics",
        "parameters of measuring",
        "code of measuring",
        "intervals",
        "quality",
        "tuning",
        "losses",
        "components",
        "records",
    ],
)
def test_edits_run_only_what_depends_on_them(finished: Project, edits: list[tuple[str, str, str, set[str]]]) -> None:
    """`--dry` lists the stages whose own inputs changed; those behind them follow when their inputs do."""
    try:
        for path, old, new, _ in edits:
            finished.replace(path, old, new)
        stages = set(Project.stages_run(finished.run("dvc", "repro", "--dry").stdout)) - {"probe"}
    finally:
        finished.run("git", "checkout", "-q", *(path for path, *_ in edits))
    expected = set.union(*(listed for *_, listed in edits))
    assert {stage for stage in stages if not any(stage.startswith(prefix) for prefix in expected)} == set()
    assert all(any(stage.startswith(prefix) for stage in stages) for prefix in expected), stages


def test_another_machine_measures_everything_and_trains_nothing(finished: Project) -> None:
    description = finished.root / paths.HARDWARE
    known = description.read_text()
    machine = json.loads(known)
    description.write_text(json.dumps(machine | {"ram_limit_gib": machine["ram_limit_gib"] + 1}))
    try:
        stages = Project.stages_run(finished.run("dvc", "repro", "--dry").stdout)
    finally:
        description.write_text(known)
    rows = load(finished.root).rows()
    cells = {f"measure_{row.axis}@{row.cell}" for row in rows}
    assert set(stages) == cells | {"probe", "report"}, "what is trained or evaluated knows no machine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method=dorra", "unknown tuning method 'dorra'; did you mean 'dora'? known: dora, freeze, full, lora"),
        ("method='x; touch hacked'", "unknown tuning method 'x; touch hacked'"),
        ("profile=../../etc/passwd", "unknown profile '../../etc/passwd'"),
        ("profiles/smoke.yaml:models.small.heads=5", "heads"),
    ],
)
def test_bad_parameters_stop_before_any_work(finished: Project, change: str, message: str) -> None:
    done = finished.run("dvc", "exp", "run", "-S", change, check=False)
    finished.run("git", "reset", "-q", "--hard")
    finished.run("dvc", "checkout", "-q")  # a probe that fails leaves no hardware.json
    assert done.returncode != 0
    assert message in done.stdout
    assert Project.stages_run(done.stdout) in (["probe"], []), done.stdout[-3000:]
    assert not (finished.root / "hacked").exists()


def test_damaged_artifact_is_one_clear_error(finished: Project) -> None:
    weights = finished.root / "artifacts" / "pretrain" / "mqa" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])
    try:
        done = finished.run("python", "-m", "stages.measure", "--axis", "pretrain", "--cell", "mqa", check=False)
    finally:
        weights.write_bytes(content)
    assert done.returncode == 1
    assert "error: " in done.stdout
    assert "model.safetensors" in done.stdout
    assert "Traceback" not in done.stdout


def test_rates_are_swept_and_a_sweep_goes_on(finished: Project) -> None:
    swept = ("python", "benchmarks/learning_rates.py", "--out", "sweep.csv")
    architectures = ("--rows", "dense_small,mamba", "--rates")
    finished.run(*swept, *architectures, "1e-3")
    lines = (finished.root / "sweep.csv").read_text().splitlines()
    assert [line.split(",")[1:4] for line in lines[1:]] == [["-", "dense_small", "0.001"], ["-", "mamba", "0.001"]]
    assert "best" in finished.run(*swept, *architectures, "1e-3,2e-3").stdout
    finished.run(*swept, "--size", "small", "--rows", "lora", "--rates", "1e-3")
    further = (finished.root / "sweep.csv").read_text().splitlines()
    assert further[:3] == lines, "what the file has is not trained again, seconds and all"
    assert [line.split(",")[1] for line in further[3:]] == ["-", "-", "small"]
    shown = finished.run(*swept, "--rows", "dense_small", "--rates", "1e-5,1e-4", "--extend", "1").stdout
    assert "0.001:" in shown, "the larger rate is better, so a still larger one is tried"
    assert "0.01:" not in shown
    (finished.root / "sweep.csv").unlink()
