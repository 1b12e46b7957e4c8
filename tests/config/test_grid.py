"""Checks that need the techniques' own code; each fault is one line that names the parameter."""

from pathlib import Path

import pytest
from test_load import change

from efficientllm import config
from efficientllm.config.grid import check_grid, data_fingerprint
from efficientllm.errors import ParameterError


@pytest.mark.parametrize("profile", ["cpu", "smoke"])
def test_every_cell_of_every_profile_can_be_built(project: Path, profile: str) -> None:
    change(project / "params.yaml", "profile", profile)
    check_grid(config.load(project))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("models.small.heads", 5, "architecture 'dense_small': hidden_size 128 is not a multiple of heads 5"),
        ("pretrain.training.sequence_length", 512, "pretrain.training.sequence_length is 512, more than models."),
        ("tune.training.sequence_length", 4096, "tune.training.sequence_length is 4096, more than models.small"),
        ("measure.serving_output_length", 4096, "serving_output_length is 4128, more than models.small.context_length"),
        (
            "tune.methods.lora.rnk",
            3,
            "unknown parameter 'tune.methods.lora.rnk'; did you mean 'tune.methods.lora.rank'?",
        ),
        ("tune.methods.freeze.trainable_layers", ..., "missing parameter 'tune.methods.freeze.trainable_layers'"),
        ("quantize.int4.quantization_type", "nf5", "parameter 'quantize.int4.quantization_type' is 'nf5'"),
        ("architectures.moe_small.feedforward.expert", 3, "expert"),
        ("architectures.mqa.mixer", {"window": 3}, "window"),
    ],
)
def test_unfit_parameters_are_named(project: Path, key: str, value: object, message: str) -> None:
    change(project / "profiles" / "cpu.yaml", key, value)
    with pytest.raises(ParameterError) as caught:
        check_grid(config.load(project))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_cannot_be_shared_is_named_where_it_stands(project: Path) -> None:
    profile = project / "profiles" / "cpu.yaml"
    change(profile, "parallel", {"strategy": "ddp", "processes": 2})
    change(profile, "tune.training.batch_sizes", {"small": 8, "medium": 5, "large": 2})
    with pytest.raises(ParameterError, match=r"tune\.training\.batch_sizes\.medium is 5, which 2 processes"):
        check_grid(config.load(project))


def test_the_users_own_files_are_hashed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    profile = project / "profiles" / "cpu.yaml"
    assert data_fingerprint(config.load(project)) == {}
    text = project / "text.txt"
    text.write_text("a")
    change(profile, "data.source", "files")
    change(profile, "data.files", {"paths": ["*.txt"], "text_field": "text", "licence": "CC0"})
    change(profile, "data.task.source", "file")
    change(profile, "data.task.path", "task.jsonl")
    with pytest.raises(ParameterError, match=r"data\.task\.path names 'task\.jsonl', which is no file"):
        data_fingerprint(config.load(project))
    (project / "task.jsonl").write_text("{}")
    before = data_fingerprint(config.load(project))
    assert set(before) == {"text.txt", "task.jsonl"}
    text.write_text("b")
    assert data_fingerprint(config.load(project)) != before
