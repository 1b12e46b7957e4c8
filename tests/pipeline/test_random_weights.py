"""A profile of random weights trains and stores nothing, and measures efficiency all the same."""

import pytest
from project import Project, working_copy

from efficientllm import metrics, paths
from efficientllm.records import read_record

pytestmark = pytest.mark.slow
CHANGES = {"perplexity_change", "task_accuracy_change"}


def run(project: Project, stage: str, *arguments: str) -> str:
    return project.run("python", "-m", f"stages.{stage}", *arguments).stdout


def test_efficiency_alone_is_measured(tmp_path) -> None:
    project = working_copy(tmp_path / "project")
    project.replace("profiles/smoke.yaml", "random_weights: false", "random_weights: true")
    # the embedding may have more rows than the tokenizer has entries, as that of a larger model's shape has
    project.replace("profiles/smoke.yaml", "    tie_embeddings:", "    vocabulary_size: 2000\n    tie_embeddings:")
    project.replace("params.yaml", "method: lora", "method: full")
    for stage in ("probe", "prepare"):
        run(project, stage)
    run(project, "pretrain", "--architecture", "dense_small")
    run(project, "base", "--size", "small")
    for method in ("pissa", "full"):
        run(project, "tune", "--method", method, "--size", "small")
    for precision in ("bfloat16", "int4"):
        run(project, "quantize", "--precision", precision, "--size", "small")
    weights = list((project.root / paths.ARTIFACTS).rglob("*.safetensors"))
    assert not weights, "random weights take no room"

    cells = [("pretrain", "dense_small"), ("tune", "pissa-small"), ("tune", "full-small")]
    cells += [("quantize", "bfloat16-small"), ("quantize", "int4-small")]
    for axis, cell in cells:
        printed = run(project, "measure", "--axis", axis, "--cell", cell)
        assert "not measured: random weights" in printed
        record = read_record(project.root / paths.record(axis, cell))
        assert record.status == "ok"
        quality = {key for key in metrics.QUALITY if axis in metrics.metric(key).measured_on}
        quality |= {"tune": CHANGES, "quantize": {*CHANGES, "model_compression_rate"}}.get(axis, set())
        assert {key for key, reason in record.missing.items() if "random weights" in reason} == quality
        assert record.metrics["average_latency"].value > 0
        assert record.metrics["inference_throughput"].value > 0
        assert record.model is not None
        assert (record.model.bytes_optimizer is None) == (axis == "quantize")
    large, few = (
        read_record(project.root / paths.record("quantize", f"{precision}-small")) for precision in ("bfloat16", "int4")
    )
    assert large.model.bytes_in_memory == 2 * large.model.parameters_total
    assert few.model.bytes_in_memory < 0.9 * large.model.bytes_in_memory
    assert few.information["compression"]["ratio_stored"] > 1.1
    whole, adapter = (
        read_record(project.root / paths.record("tune", f"{method}-small")) for method in ("full", "pissa")
    )
    assert whole.metrics["model_compression_rate"].value == pytest.approx(1.0)
    assert whole.model.bytes_optimizer > 2 * 4 * whole.model.parameters_trainable * 0.99  # both moments in float32
    stored = adapter.model.bytes_on_disk / (4 * adapter.model.parameters_trainable)
    assert stored == pytest.approx(2.0), "PiSSA stores the difference to its start, of twice the rank"
