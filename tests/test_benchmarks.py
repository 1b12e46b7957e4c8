"""The benchmarks run: at tiny sizes on the CPU, where their figures mean nothing."""

import argparse
import csv
import runpy
import sys
from pathlib import Path

import pytest
from kernel_times import kind_of
from table import ratio, read_table, write_table

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.chdir(BENCHMARKS.parent)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options: list[argparse.Action] = []
    add = argparse.ArgumentParser.add_argument

    def noted(parser: argparse.ArgumentParser, *names: str, **given: object) -> argparse.Action:
        options.append(add(parser, *names, **given))  # type: ignore[arg-type]
        return options[-1]

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, name, "--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert options
    for option in options:
        assert option.help, option.option_strings
        assert option.option_strings[-1] in printed
        with_value = option.nargs != 0 and option.dest not in ("out", "help")
        assert not with_value or option.default is not None or "default: " in option.help, option.option_strings


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("decoding_attention.py", ("--heads", "4:2"), "--heads: '4:2' is not of the form query heads:key heads:width"),
        ("interval_coverage.py", ("--repeats", "3,1"), "--repeats: '1' is no whole number of at least 2"),
        ("measuring_overhead.py", ("--seconds", "0"), "--seconds: '0' is no number above 0"),
        ("tuning_throughput.py", ("--seconds", "-1"), "--seconds: '-1' is no number of at least 0"),
        ("repeatability.py", ("--cells", "tune"), "--cells: 'tune' is not of the form axis:cell"),
        ("scaling.py", ("--processes", "2,3"), "--processes: 2 does not divide 3"),
        ("scaling.py", ("--strategies", "dpp"), "--strategies: unknown name 'dpp'; did you mean 'ddp'?"),
        ("scaling.py", ("--rows", "dense_tiny"), "--rows: unknown name 'dense_tiny'; did you mean"),
        ("serving.py", ("--profile", "absent.yaml"), "--profile: absent.yaml does not exist"),
        ("serving.py", ("--profile", "params.yaml"), "--profile: params.yaml has no block `quantize`"),
        ("training_throughput.py", ("--rows", "nsa_orginal"), "--rows: unknown name 'nsa_orginal'; did you mean"),
        ("learning_rates.py", ("--size", "small", "--rows", "lorra"), "--rows: unknown name 'lorra'; did you mean"),
    ],
)
def test_unfit_options_end_with_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, name, *arguments)
    assert ended.value.code == 2
    assert f"error: argument {message}" in capsys.readouterr().err


def test_table_reads_back_and_rows_are_compared(tmp_path: Path) -> None:
    rows = [
        {"row": "a", "length": 8, "speed": 2.0},
        {"row": "a", "length": 16, "speed": 5.0},
        {"row": "b", "length": 16, "speed": 1.5, "device": "CPU"},
        {"row": "c", "length": 16, "speed": 3.0, "failure": "OutOfMemoryError: "},
    ]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows
    assert ratio(rows[2], rows, "speed", row="a", length=16) == 0.3
    assert ratio(rows[2], rows, "speed", row="c") is None, "what a row that failed has says nothing"
    assert ratio(rows[2], rows, "joules", row="a") is None
    assert read_table(tmp_path / "absent.csv") == []


def test_training_throughput(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["dense_medium", "mla", "nsa", "learned", "moe_small", "mamba", "pythia", "rwkv", "relative"]
    size = ("--shape", "tiny", "--sequence", "32", "--batch", "1", "--steps", "1", "--warmup", "1")
    run(
        monkeypatch, "training_throughput.py", *size, "--rows", ",".join(rows), "--recompute", "--kernels",
        "--out", str(tmp_path / "rows.csv"),
    )  # fmt: skip
    found = table(tmp_path / "rows.csv")
    assert [row["row"] for row in found] == ["Transformers Llama", *rows]
    assert not any(row.get("failure") for row in found), capsys.readouterr().out
    active = [int(row["active"]) for row in found if row["row"] not in ("Transformers Llama", "moe_small")]
    assert max(active) / min(active) < 1.02, "compared rows have the same number of active parameters"
    assert "activations: recomputed" in found[1]["kernels"]


def test_serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--shape", "tiny", "--batches", "1", "--prompt", "8", "--output", "4", "--seconds", "0", "--repeats", "1")
    command = ("serving.py", *size, "--traceback", "--out", str(tmp_path / "s.csv"))
    run(monkeypatch, *command, "--precisions", "bfloat16")
    cut_short = table(tmp_path / "s.csv")
    run(monkeypatch, *command, "--precisions", "bfloat16,int4")
    found = table(tmp_path / "s.csv")
    assert [row["tokens_per_second"] for row in found[:3]] == [row["tokens_per_second"] for row in cut_short]
    assert [(row["precision"], row["engine"]) for row in found] == [
        (precision, engine) for precision in ("bfloat16", "int4") for engine in ("ours", "static", "generate")
    ]
    assert all(float(row["tokens_per_second"]) > 0 for row in found)
    longer = ("--prompt", "12", "--precisions", "bfloat16", "--engines", "ours")
    run(monkeypatch, *command, *longer)
    assert float(table(tmp_path / "s.csv")[-1]["x_ours"]) == 1.0, "rows are compared at one length"
    (tmp_path / "s.csv").write_text((tmp_path / "s.csv").read_text().replace(",CPU", ",another"))
    with pytest.raises(SystemExit, match="rows of another, and this is CPU"):
        run(monkeypatch, *command, "--precisions", "int4")


def test_tuning_throughput(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--shape", "tiny", "--batch", "1", "--sequence", "16", "--seconds", "0", "--warmup", "1")
    run(monkeypatch, "tuning_throughput.py", *size, "--traceback", "--out", str(tmp_path / "t.csv"))
    found = table(tmp_path / "t.csv")
    assert len(found) == 8, "the baseline and seven methods"
    assert all(float(row["samples_per_second"]) > 0 for row in found)


def test_decoding_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = [
        "--heads",
        "4:2:16",
        "--batches",
        "1,2",
        "--contexts",
        "12",
        "--layers",
        "2",
        "--tokens",
        "3",
        "--repeats",
        "1",
    ]
    run(monkeypatch, "decoding_attention.py", *size, "--out", str(tmp_path / "d.csv"))
    found = table(tmp_path / "d.csv")
    assert [row["batch"] for row in found] == ["1", "2"]
    assert all(float(row["pytorch_ms"]) > 0 and float(row["engine_ms"]) > 0 for row in found)


@pytest.mark.slow
def test_graph_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("efficientllm.models.second_context._LIBRARY", "libno-driver.so.1")
    size = ("--shapes", "tiny", "--batches", "1,2", "--prompt", "8", "--output", "4")
    run(monkeypatch, "graph_launches.py", *size, "--out", str(tmp_path / "g.csv"))
    found = table(tmp_path / "g.csv")
    assert [row["batch"] for row in found] == ["1", "2"]
    assert all(float(row["recorded_us"]) > 0 and "libno-driver" in row["failure"] for row in found)


def test_serving_beside_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is no dependency")
    size = ("--shape", "tiny", "--batches", "2", "--prompt", "12", "--output", "6", "--repeats", "1")
    run(monkeypatch, "serving_llama_cpp.py", *size, "--precisions", "float16,int4", "--out", str(tmp_path / "l.csv"))
    half, packed = table(tmp_path / "l.csv")
    assert float(half["same"]) == 1.0, "the same weights, read by other code"
    assert float(packed["x_llama_cpp"]) > 0


@pytest.mark.slow
def test_scaling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--shape", "tiny", "--sequence", "16", "--losses", "2", "--warmup", "1", "--steps", "2")
    run(
        monkeypatch, "scaling.py", *size, "--compile", "none", "--rows", "moe_medium", "--strategies", "fsdp",
        "--processes", "2", "--out", str(tmp_path / "s.csv"),
    )  # fmt: skip
    alone, sharded = table(tmp_path / "s.csv")
    assert (alone["strategy"], sharded["strategy"]) == ("none", "fsdp")
    assert "failure" not in alone
    assert float(sharded["largest_loss_difference"]) < 1e-5, "two processes see what one does"
    assert float(sharded["efficiency"]) > 0
    assert float(sharded["joules_per_token"]) > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("_selected_key_gradient", "sparse attention"),
        ("triton_poi_fused_mul_silu_2", "compiled elementwise"),
        ("void at::native::multi_tensor_apply_kernel<FusedOptimizer>", "optimizer and clipping"),
        ("void something_else", "other"),
    ],
)
def test_kernels_by_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_measuring_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--sequence", "16", "--batch", "1", "--seconds", "0.1", "--pairs", "2")
    run(monkeypatch, "measuring_overhead.py", *size, "--out", str(tmp_path / "o.csv"))
    found = table(tmp_path / "o.csv")
    assert [row["meters"] for row in found] == ["time and energy"] * 2 + ["memory"] * 2
    assert all(float(row["ratio"]) > 0 for row in found)


def test_interval_coverage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "interval_coverage.py", "--draws", "10", "--repeats", "3")
    assert len(capsys.readouterr().out.splitlines()) == 6, "a head and four kinds of noise"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_pipeline_scale(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "pipeline_scale.py", "--cells", "9")
    cells, *times, peak = [entry.strip() for entry in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert (cells, len(times)) == ("12", 3), "three architectures and three tuned sizes, each made and measured"
    assert float(peak) > 10


@pytest.mark.parametrize(
    ("name", "shapes", "baseline"),
    [
        ("matrix_vector.py", "32:16+8+8:n,32:24+24:ng,48:32:a,32:40:", "pytorch_us"),
        ("packed_matrix_vector.py", "64:16+8+8:n,64:32+32:ng,128:32:a", "bitsandbytes_us"),
    ],
)
def test_matrix_vector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, shapes: str, baseline: str) -> None:
    run(
        monkeypatch, name, "--shapes", shapes, "--bytes", "1e4", "--repeats", "1", "--out", str(tmp_path / "m.csv"),
    )  # fmt: skip
    found = table(tmp_path / "m.csv")
    assert [row["shape"] for row in found] == shapes.split(",")
    assert all(float(row["us"]) > 0 and float(row[baseline]) > 0 for row in found)


def test_packed_product(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--shapes", "64:16,128:32", "--rows", "2,3", "--weights", "5e3", "--repeats", "1")
    run(monkeypatch, "packed_product.py", *arguments, "--out", str(tmp_path / "p.csv"))
    found = table(tmp_path / "p.csv")
    assert [(row["shape"], row["rows"]) for row in found] == [
        ("64:16", "2"),
        ("64:16", "3"),
        ("128:32", "2"),
        ("128:32", "3"),
    ]
    assert all(float(row[key]) > 0 for row in found for key in ("us", "bitsandbytes_us", "bfloat16_us"))
