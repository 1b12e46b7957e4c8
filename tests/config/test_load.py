"""Parameters: what is accepted, and the one line that a person reads when something is not."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efficientllm import config
from efficientllm.errors import ParameterError

ROOT = Path(__file__).parents[2]


def change(path: Path, key: str, value: object) -> None:
    yaml = YAML()
    content = yaml.load(path.read_text())
    *parents, last = key.split(".")
    block = content
    for parent in parents:
        block = block[parent]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    with path.open("w") as stream:
        yaml.dump(content, stream)


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(project: Path, profile: str) -> None:
    change(project / "params.yaml", "profile", profile)
    configuration = config.load(project)
    cells = {row.cell for row in configuration.rows() if row.axis == "pretrain"}
    assert cells == set(configuration.parameters.architectures), "a trained architecture serves no row"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method", "dorra", "unknown tuning method 'dorra'; did you mean 'dora'? known: dora, freeze, full, lora"),
        ("profile", "cpuu", "unknown profile 'cpuu'; did you mean 'cpu'? known: cpu, gpu, paper, smoke, smollm2"),
        ("profile", "../../etc/passwd", "unknown profile '../../etc/passwd'; known: cpu, gpu, paper, smoke, smollm2"),
        ("method", "x; rm -rf ~", "unknown tuning method 'x; rm -rf ~'; known:"),
        ("precisions", ["int5"], "unknown precision 'int5'; did you mean 'int8'?"),
        ("sizes", ["tiny"], "unknown size 'tiny'"),
        ("methods", ["lora", "lora"], "a tuning method is listed twice in params.yaml: lora, lora"),
        ("methods", ["full"], "method is 'lora', which is not among the methods that are tuned (full)"),
        ("methods", [], "parameter 'methods' in params.yaml is []: list should have at least 1 item"),
        ("seed", -1, "parameter 'seed' in params.yaml is -1: input should be greater than or equal to 0"),
        ("seed", "zero", "parameter 'seed' in params.yaml is 'zero': input should be a valid integer"),
        ("seed", ..., "missing parameter 'seed' in params.yaml"),
        ("sed", 1, "unknown parameter 'sed' in params.yaml; did you mean 'seed'? known: architectures, bases,"),
        ("architectures.mqa.mixer", "mqqa", "unknown mixer 'mqqa' of architecture mqa; did you mean 'mqa'?"),
        ("architectures.mqa.mixr", "mqa", "unknown parameter 'architectures.mqa.mixr' in params.yaml; did you mean"),
        ("architectures.mqa.size", "huge", "unknown size 'huge' of architecture mqa; known: large, medium, small"),
        ("architectures.dense_large", ..., "size 'large' is tuned from the pretraining run 'dense_large'"),
        ("bases.small", ..., "missing parameter 'bases.small' in params.yaml: what the size is tuned from"),
        ("bases.huge", "model.gguf", "unknown size 'huge' in `bases`; known: large, medium, small"),
        ("replicas.seeds", [0], "replicas.seeds is [0]: each is named once, and none is the run's own seed, 0"),
        ("replicas.seeds", [1, 1], "replicas.seeds is [1, 1]: each is named once"),
        ("architectures.mqa_2", {"size": "small", "block": "pre_norm", "mixer": "mqa", "position": "rope",
                                 "feedforward": "swiglu"}, "architecture 'mqa_2' serves no row"),
    ],
)  # fmt: skip
def test_faults_in_params(project: Path, key: str, value: object, message: str) -> None:
    change(project / "params.yaml", key, value)
    with pytest.raises(ParameterError) as caught:
        config.load(project)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pretrain.training.stepz", 3, "unknown parameter 'pretrain.training.stepz' in profiles/cpu.yaml; did you mean 'pretrain.training.steps'?"),
        ("pretrain.training.steps", 0, "parameter 'pretrain.training.steps' in profiles/cpu.yaml is 0: input should be greater"),
        ("pretrain.training.steps", 1.5, "parameter 'pretrain.training.steps' in profiles/cpu.yaml is 1.5"),
        ("pretrain.training.weight_decay", float("nan"), "parameter 'pretrain.training.weight_decay'"),
        ("pretrain.training.autocast", "bf16", "parameter 'pretrain.training.autocast' in profiles/cpu.yaml is 'bf16': input should be 'auto', 'none' or 'bfloat16'"),
        ("pretrain.training.warmup_steps", 501, "pretrain.training.warmup_steps in profiles/cpu.yaml is 501, more than its 500 steps"),
        ("tune.training.steps", 5, "tune.training.warmup_steps in profiles/cpu.yaml is 10, more than its 5 steps"),
        ("models.small.heads", "four", "parameter 'models.small.heads' in profiles/cpu.yaml is 'four'"),
        ("models.small.hedas", 4, "unknown parameter 'models.small.hedas' in profiles/cpu.yaml; did you mean 'models.small.heads'?"),
        ("data.source", "web", "parameter 'data.source' in profiles/cpu.yaml is 'web': input should be 'sotu', 'files' or 'huggingface'"),
        ("data.source", "files", "data.source is 'files', but profiles/cpu.yaml has no block data.files"),
        ("data.tokenizer.path", "t.json", "set exactly one of train_vocabulary_size and path"),
        ("data.task.path", "t.jsonl", "`path` belongs to source 'file'"),
        ("architectures.mqa", ..., "missing parameter 'architectures.mqa' in profiles/cpu.yaml"),
        ("tune.methods.dora", ..., "missing parameter 'tune.methods.dora' in profiles/cpu.yaml"),
        ("tune.methods.lora.learning_rate.small", -1.0, "parameter 'tune.methods.lora.learning_rate.small'"),
        ("quantize.int4", ..., "missing parameter 'quantize.int4' in profiles/cpu.yaml"),
        ("measure.repeats", True, "parameter 'measure.repeats' in profiles/cpu.yaml is True"),
        ("measure.country_iso_code", "us", "parameter 'measure.country_iso_code'"),
    ],
)  # fmt: skip
def test_faults_in_profile(project: Path, key: str, value: object, message: str) -> None:
    change(project / "profiles" / "cpu.yaml", key, value)
    with pytest.raises(ParameterError) as caught:
        config.load(project)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files(project: Path) -> None:
    (project / "params.yaml").write_text("profile: cpu\nseed: [1\n")
    with pytest.raises(ParameterError, match=r"params.yaml, line \d+: not valid YAML"):
        config.load(project)
    (project / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match=r"params.yaml is not UTF-8 \(byte 0xFF at 0\)"):
        config.load(project)
    (project / "params.yaml").unlink()
    with pytest.raises(ParameterError, match=r"params.yaml does not exist"):
        config.load(project)
    (project / "params.yaml").write_text("")
    with pytest.raises(ParameterError, match=r"params.yaml is empty: a mapping of parameters is needed"):
        config.load(project)


def test_yaml_1_1_and_1_2_readers_agree() -> None:
    """DVC reads YAML 1.2; a person's editor or script may read 1.1, where 1e-3 is a string and `no` a boolean."""
    yaml_1_1 = YAML(typ="safe")
    yaml_1_1.version = (1, 1)
    for path in [ROOT / "params.yaml", *(ROOT / "profiles").glob("*.yaml")]:
        assert yaml_1_1.load(path.read_text()) == YAML(typ="safe").load(path.read_text()), path


def test_replicas_of_what_the_run_leaves_out(project: Path) -> None:
    change(project / "params.yaml", "replicas.seeds", [1])
    change(project / "params.yaml", "replicas.architectures", ["mha"])
    with pytest.raises(
        ParameterError, match=r"replicas\.architectures names 'mha', which `architectures` in params\.yaml"
    ):
        config.load(project)
