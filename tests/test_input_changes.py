"""Inputs that are edited while a stage runs: DVC must not store its output as made with the new ones."""

import shutil
from pathlib import Path

import pytest

from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.input_changes import read_inputs, require_unchanged

ROOT = Path(__file__).parents[1]
CHANGES = [  # file, what is changed, the stages that it concerns, and others that it does not
    ("profiles/smoke.yaml", ("  mqa:\n    learning_rate: ", "  mqa:\n    learning_rate: 7"), ["pretrain@mqa"], ["pretrain@mla", "tune@lora-small"]),
    ("profiles/smoke.yaml", ("    lora:\n", "    lora:\n      # a remark\n"), [], ["tune@lora-small", "measure_tune@lora-small"]),
    ("params.yaml", ("seed: 0", "seed: 5"), ["pretrain@mqa", "base@small", "tune@lora-small", "prepare"], ["replicate_tune@lora-small-1"]),
    ("params.yaml", ("method: lora", "method: dora"), ["normalize", "report"], ["pretrain@mqa", "tune@dora-large"]),
    ("profiles/gpu.yaml", ("random_weights: false", "random_weights: true"), [], ["pretrain@mqa"]),
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("profiles", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "efficientllm", tmp_path / "efficientllm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("profile: cpu", "profile: smoke"))
    return tmp_path


def address(stage: str) -> str:
    families = {"pretrain": "pretraining", "base": "tuning", "tune": "tuning"}
    axis = stage.split("@")[0].removeprefix("measure_").removeprefix("replicate_")
    return f"stages/{families[axis]}/dvc.yaml:{stage}" if axis in families else stage


@pytest.mark.parametrize(("file", "change", "concerned", "others"), CHANGES)
def test_a_change_concerns_the_stages_that_declare_it(
    project: Path, monkeypatch, file, change, concerned, others
) -> None:
    before = read_inputs(project)
    text = (project / file).read_text()
    assert change[0] in text
    (project / file).write_text(text.replace(*change, 1))
    for stage in others:
        monkeypatch.setenv("DVC_STAGE", address(stage))
        require_unchanged(before, project)
    for stage in concerned:
        monkeypatch.setenv("DVC_STAGE", address(stage))
        with pytest.raises(ArtifactError, match=rf"^{file}: .* was changed from .* while {stage} ran: run the same"):
            require_unchanged(before, project)


def test_every_stage_can_be_checked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_inputs(project)
    with (project / "params.yaml").open("a") as file:
        file.write("# a remark\n")
    for stage in ("probe", "prepare", "normalize", "report", "pretrain@rwkv", "measure_pretrain@moe_small", "base@large",
                  "tune@pissa-medium", "measure_tune@full-small", "replicate_tune@dora-small-2"):  # fmt: skip
        monkeypatch.setenv("DVC_STAGE", address(stage))
        require_unchanged(before, project)
    for stage in ("quantize@int4-small", "measure_quantize@float16-large"):
        monkeypatch.setenv("DVC_STAGE", f"stages/quantization/dvc.yaml:{stage}")
        require_unchanged(before, project)


@pytest.mark.parametrize(
    ("file", "concerned", "others"),
    [
        ("efficientllm/models/decoder.py", ["pretrain@mqa", "tune@lora-small"], ["normalize", "prepare"]),
        ("efficientllm/components/mixers/mla.py", ["pretrain@mla"], ["pretrain@mqa"]),
        ("efficientllm/components/mixers/another.py", [], ["pretrain@mla", "pretrain@mqa"]),
        ("stages/tune.py", ["tune@dora-large"], ["measure_tune@dora-large"]),
    ],
)
def test_a_change_of_code_concerns_the_stages_that_depend_on_it(
    project: Path, monkeypatch, file, concerned, others
) -> None:
    before = read_inputs(project)
    with (project / file).open("a") as stream:
        stream.write("# another line\n")
    for stage in others:
        monkeypatch.setenv("DVC_STAGE", address(stage))
        require_unchanged(before, project)
    for stage in concerned:
        monkeypatch.setenv("DVC_STAGE", address(stage))
        with pytest.raises(
            ArtifactError, match=rf"^{file} was changed while {stage} ran: .*`dvc commit -f {address(stage)}`"
        ):
            require_unchanged(before, project)


def test_a_file_that_is_left_broken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_inputs(project)
    (project / "profiles" / "smoke.yaml").write_text("a: [")
    for stage in ("normalize", "report"):  # which do not read it
        monkeypatch.setenv("DVC_STAGE", address(stage))
        require_unchanged(before, project)
    monkeypatch.setenv("DVC_STAGE", address("pretrain@mqa"))
    with pytest.raises(ParameterError, match=r"smoke\.yaml"):
        require_unchanged(before, project)


def test_what_is_put_back_has_not_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", address("pretrain@mqa"))
    before = read_inputs(project)
    path = project / "efficientllm" / "models" / "decoder.py"
    path.write_bytes(path.read_bytes())
    require_unchanged(before, project)
