"""Files that change behind everyone's back, in the workspace and in DVC's cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientllm import pipeline
from tests.faults.cells import STAGES
from tests.faults.conftest import Stage
from tests.pipeline.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """Changes one bit: of a number in a text, so that it still is a number, or of a weight."""
    content = bytearray(path.read_bytes())
    if 0 in content:
        content[-99] ^= 0x10
    else:
        digits = [place for place, byte in enumerate(content) if byte in b"1234567"]
        content[digits[len(digits) // 2]] ^= 0x01 if content[digits[len(digits) // 2]] != ord("1") else 0x02
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("artifacts/data/train.npy", ("pretrain", STAGES["pretrain"])),
        ("artifacts/data/task/train.jsonl", ("tune", STAGES["tune"])),
        ("artifacts/pretrain/dense_small/model.safetensors", ("base", STAGES["base"])),
        ("artifacts/pretrain/dense_small/config.json", ("measure", ("--axis", "pretrain", "--cell", "dense_small"))),
        ("artifacts/base/small/model.safetensors", ("tune", STAGES["tune"])),
        ("artifacts/base-quality/small.json", ("measure", STAGES["measure"])),
        ("artifacts/tune/lora-small/adapter_model.safetensors", ("quantize", STAGES["quantize"])),
        ("artifacts/quantize/bfloat16-small/model.safetensors", ("measure", ("--axis", "quantize", "--cell", "bfloat16-small"))),
        ("artifacts/telemetry/tune/lora-small/curve.csv", ("normalize", ())),
        ("artifacts/telemetry/pretrain/dense_small/curve.csv", ("report", ())),
        ("artifacts/measure/tune/lora-small.json", ("normalize", ())),
        ("artifacts/measure/tune/lora-small.json", ("report", ())),
        ("results/results.csv", ("report", ())),
        ("results/ranking.csv", ("report", ())),
    ],
)  # fmt: skip
def test_damaged_input(
    stage: Stage, workspace: Path, capsys: pytest.CaptureFixture[str], file: str,
    reader: tuple[str, tuple[str, ...]], damage: Callable[[Path], None],
) -> None:  # fmt: skip
    path = workspace / file
    damage(path)
    name, arguments = reader
    before = {other: other.read_bytes() for other in workspace.rglob("*") if other.is_file()}
    assert stage(name, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}")
    assert "dvc repro" in line
    assert {other: other.read_bytes() for other in workspace.rglob("*") if other.is_file()} == before


def cached(project: Project, file: str) -> Path:
    """The file of DVC's cache that holds an output, or a file of an output folder."""
    stages = [stage for lock in pipeline.LOCKS for stage in pipeline.read_lock(project.root / lock).values()]
    cache = project.root / ".dvc" / "cache" / "files" / "md5"
    for output in (output for stage in stages for output in stage.get("outs", [])):
        md5 = output["md5"]
        if file == output["path"]:
            return cache / md5[:2] / md5[2:]
        if file.startswith(f"{output['path']}/"):
            for entry in json.loads((cache / md5[:2] / md5[2:]).read_text()):
                if f"{output['path']}/{entry['relpath']}" == file:
                    return cache / entry["md5"][:2] / entry["md5"][2:]
    raise AssertionError(f"{file} is in no output")


def test_damage_in_the_workspace_is_mended_by_dvc(copy: Project) -> None:
    for file in ("artifacts/pretrain/dense_small/model.safetensors", "artifacts/measure/tune/lora-small.json"):
        flipped(copy.root / file)
    expected = (copy.root / "results" / "results.csv").read_text()
    output = copy.run("dvc", "repro").stdout
    assert Project.stages_run(output) == ["probe"], "everything else comes from the cache"
    assert (copy.root / "results" / "results.csv").read_text() == expected
    assert copy.run("dvc", "status").stdout.split() == ["probe:", "always", "changed"]


def test_damage_in_the_cache_is_found_and_mended(copy: Project) -> None:
    """DVC believes its cache: it restores a damaged file and finds everything up to date."""
    damaged = ["artifacts/pretrain/dense_small/model.safetensors", "artifacts/measure/tune/lora-small.json"]
    for file in damaged:
        path = cached(copy, file)
        mode = path.stat().st_mode
        path.chmod(0o644)
        flipped(path)
        path.chmod(mode)
        (copy.root / file).unlink()
    copy.run("dvc", "checkout")
    for stage, file in (("base", damaged[0]), ("normalize", damaged[1])):
        failed = copy.run("python", "-m", f"stages.{stage}", *STAGES[stage], check=False)
        assert failed.returncode == 1
        assert failed.stdout.splitlines()[-1] == (
            f"error: {file} is damaged: run `efficientllm verify`, then `dvc repro`"
        )
    verified = copy.run("efficientllm", "verify").stdout.splitlines()
    assert sum(line.startswith("removed ") for line in verified) == 2
    assert verified[-1].endswith("2 removed; now `dvc pull` or `dvc repro`")
    ran = Project.stages_run(copy.run("dvc", "repro").stdout)
    assert {"pretrain@dense_small", "measure_tune@lora-small"} <= set(ran)
    assert not {"prepare", "base@small", "tune@lora-small", "quantize@bfloat16-small"} & set(ran), (
        "the same weights came out, so what starts from them stands"
    )
    assert copy.run("efficientllm", "verify").stdout.splitlines()[-1].endswith("0 removed")
