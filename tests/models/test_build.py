"""Compared architectures have the dense model's active parameters; components are found by name, and alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from efficientllm import config as configuration
from efficientllm.config.load import read_yaml
from efficientllm.config.schema import Architecture, ArchitectureSettings, Parameters, Profile, Shape
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.models.accounting import count_parameters
from efficientllm.models.build import decoder_config
from efficientllm.models.config import DecoderConfig

ROOT = Path(configuration.__file__).parents[2]
PARAMETERS = Parameters.model_validate(read_yaml(ROOT / "params.yaml"))


def choice(**changes: str) -> Architecture:
    parts = {"block": "pre_norm", "mixer": "gqa", "position": "rope", "feedforward": "swiglu", "size": "medium"}
    return Architecture(**{**parts, **changes})


@pytest.mark.parametrize("profile_name", ["cpu", "smoke"])
@pytest.mark.parametrize("name", sorted(PARAMETERS.architectures))
def test_active_parameters_match_the_dense_model(name, profile_name):
    profile = Profile.model_validate(read_yaml(ROOT / "profiles" / f"{profile_name}.yaml"))
    architecture = PARAMETERS.architectures[name]
    shape, settings = profile.models[architecture.size], profile.architectures[name]
    vocabulary = profile.data.tokenizer.train_vocabulary_size
    dense = decoder_config(choice(size=architecture.size), ArchitectureSettings(learning_rate=1.0), shape, vocabulary)
    assert dense.intermediate_size == shape.intermediate_size
    config = decoder_config(architecture, settings, shape, vocabulary)
    expected, found = count_parameters(dense), count_parameters(config)
    assert found.active == pytest.approx(expected.active, rel=0.02)
    if architecture.feedforward == "moe":
        assert found.total > 2 * found.active
        assert config.intermediate_size == pytest.approx(shape.intermediate_size / 2, rel=0.1)
    else:
        assert found.total == found.active


def test_equal_counts_keep_the_width():
    shape = Shape(
        hidden_size=64, layers=2, heads=4, key_value_heads=2, intermediate_size=173, context_length=64,
        tie_embeddings=False, embedding_deviation=0.02,
    )  # fmt: skip
    settings = ArchitectureSettings(learning_rate=1.0)
    assert decoder_config(choice(position="sinusoidal"), settings, shape, 100).intermediate_size == 173
    assert decoder_config(choice(mixer="mha"), settings, shape, 100).intermediate_size < 173


def test_no_width_matches():
    shape = Shape(
        hidden_size=64, layers=1, heads=4, key_value_heads=2, intermediate_size=8, context_length=4096,
        tie_embeddings=True, embedding_deviation=0.02,
    )  # fmt: skip
    with pytest.raises(ParameterError, match="no feed-forward width gives mixer 'gqa', position 'learned'"):
        decoder_config(choice(position="learned"), ArchitectureSettings(learning_rate=1.0), shape, 100)


def test_config_round_trip_and_faults(make_config):
    config = make_config(feedforward="moe")
    content = config.to_dict()
    assert DecoderConfig.from_dict(content) == config
    with pytest.raises(ArtifactError, match=r"unknown field 'layer' .* did you mean 'layers'"):
        DecoderConfig.from_dict({**content, "layer": 2})
    del content["heads"]
    with pytest.raises(ArtifactError, match="lacks heads"):
        DecoderConfig.from_dict(content)


def test_only_the_chosen_components_are_imported():
    script = (
        "import sys\n"
        "from efficientllm.models.config import DecoderConfig\n"
        "assert 'torch' not in sys.modules\n"
        "from efficientllm.models.components import component\n"
        "component('mixer', 'mqa'); component('position', 'none')\n"
        "package = 'efficientllm.components.'\n"
        "folders = ('mixers.', 'positions.', 'blocks.', 'feedforwards.')\n"
        "print(sorted(n.removeprefix(package) for n in sys.modules if n.removeprefix(package).startswith(folders)))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "['mixers.mqa', 'positions.none']"


def test_counting_parameters_does_not_import_the_compiler():
    script = (
        "import sys\n"
        "from efficientllm import config\n"
        "from efficientllm.config.grid import check_grid\n"
        "configuration = config.load()\n"
        "check_grid(configuration)\n"
        "assert 'moe' in {choice.feedforward for choice in configuration.parameters.architectures.values()}\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
