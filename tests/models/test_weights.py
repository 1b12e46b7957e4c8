"""Stored models: what is written is read back, and what is damaged is refused."""

import json

import pytest
import torch

from efficientllm.errors import ArtifactError
from efficientllm.files import write_json
from efficientllm.models.weights import load_decoder, save_decoder


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize(
    ("position", "feedforward"), [("rope", "swiglu"), ("learned", "moe"), ("sinusoidal", "swiglu")]
)
def test_round_trip(make_decoder, tokens, tmp_path, tie_embeddings, position, feedforward):
    decoder = make_decoder(position=position, feedforward=feedforward, tie_embeddings=tie_embeddings)
    save_decoder(tmp_path, decoder)
    loaded = load_decoder(tmp_path).eval()
    assert loaded.config == decoder.config
    assert torch.equal(loaded(tokens).logits, decoder(tokens).logits)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_equal_weights_give_equal_bytes(make_decoder, tmp_path):
    for name in ("a", "b"):
        save_decoder(tmp_path / name, make_decoder())
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_types(make_decoder, tmp_path):
    save_decoder(tmp_path, make_decoder().to(torch.bfloat16))
    assert {parameter.dtype for parameter in load_decoder(tmp_path).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_decoder(tmp_path, dtype=torch.float32).parameters()} == {torch.float32}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_loaded_weights_do_not_hang_on_the_file(make_decoder, tokens, tmp_path):
    decoder = make_decoder()
    save_decoder(tmp_path, decoder)
    loaded = load_decoder(tmp_path).eval()
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(loaded(tokens).logits, decoder(tokens).logits)


@pytest.mark.parametrize("fault", ["truncated", "empty", "missing", "config missing", "other shape", "other model"])
def test_faults_name_the_file(make_decoder, tmp_path, fault):
    save_decoder(tmp_path, make_decoder())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = json.loads(config.read_text())
    named = weights
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "empty":
        weights.write_bytes(b"")
    elif fault == "missing":
        weights.unlink()
    elif fault == "config missing":
        config.unlink()
        named = config
    elif fault == "other shape":
        write_json(config, {**content, "intermediate_size": 96})
    else:
        write_json(config, {**content, "model_type": "llama"})
        named = config
    with pytest.raises(ArtifactError) as caught:
        load_decoder(tmp_path)
    assert str(named) in str(caught.value)


def test_incomplete_configuration(make_decoder, tmp_path):
    save_decoder(tmp_path, make_decoder())
    content = json.loads((tmp_path / "config.json").read_text())
    del content["mixer"]
    write_json(tmp_path / "config.json", content)
    with pytest.raises(ArtifactError, match=r"config\.json: a model's configuration lacks mixer"):
        load_decoder(tmp_path)
