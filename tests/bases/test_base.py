"""Anyone's checkpoint becomes a base: same function, own tokenizer, held-out text in its own tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from base_sources import configuration, llama, tokenizer_folder, write_gguf

from efficientllm import paths
from efficientllm.bases.base import base_folder, make_base, read_base_quality
from efficientllm.data.packing import open_split
from efficientllm.data.prepare import prepare
from efficientllm.data.tokenizer import load_tokenizer, save_tokenizer
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.weights import load_decoder, save_decoder


def quality() -> dict[str, float]:
    content = json.loads(paths.base_quality("small").read_text())
    return {key: value["value"] for key, value in content["values"].items()}


TOKENS = torch.randint(250, (2, 40), generator=torch.Generator().manual_seed(1))


def test_a_pretraining_run(run: Path) -> None:
    source = paths.artifact("pretrain", "dense_small")
    torch.manual_seed(0)
    decoder = build_decoder(
        DecoderConfig(
            vocabulary_size=270, hidden_size=32, layers=1, heads=2, key_value_heads=1, intermediate_size=32,
            context_length=64, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
            mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
        )
    )  # fmt: skip
    save_decoder(source, decoder)
    save_tokenizer(source, load_tokenizer(paths.DATA))
    make_base(configuration(source), "small")
    assert not (base_folder("small") / "test.npy").exists(), "the prepared tokens are the model's own"
    torch.testing.assert_close(load_decoder(base_folder("small"))(TOKENS).logits, decoder(TOKENS).logits)
    perplexity = quality()["perplexity"]
    assert 150 < perplexity < 600  # about the vocabulary's size: the weights are random
    outcomes = read_base_quality("small")
    assert outcomes.correct is not None
    assert math.exp(outcomes.losses.mean) == pytest.approx(perplexity)
    assert 100 * outcomes.correct.mean() == pytest.approx(quality()["task_accuracy"])
    paths.base_quality("small").write_text('{"reason": "out of memory"}')
    with pytest.raises(ArtifactError, match="holds no quality of a base"):
        read_base_quality("small")


def test_a_task_of_free_answers_has_everything_but_an_accuracy(run: Path) -> None:
    rows = [{"instruction": "Add.", "input": f"{n}+1", "output": str(n + 1)} for n in range(12)]
    (run / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(configuration("artifacts/pretrain/dense_small"), paths.DATA)
    vocabulary = tokenizer_folder(run / "checkpoint")
    llama(vocabulary).save_pretrained(run / "checkpoint")
    make_base(configuration(run / "checkpoint"), "small")
    assert set(quality()) == {"perplexity", "bits_per_byte", "task_loss", "exact_match"}
    assert read_base_quality("small").correct is None
    groups = json.loads(paths.base_quality("small").read_text())["task_groups"]
    assert groups["file"]["accuracy"] is None
    assert groups["file"]["exact_match"] == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_with_a_transformers_checkpoint(run: Path, tied: bool) -> None:
    source = run / "checkpoint"
    vocabulary = tokenizer_folder(source)
    model = llama(vocabulary, tie_word_embeddings=tied)
    model.save_pretrained(source)
    make_base(configuration(source), "small")
    folder = base_folder("small")
    with torch.no_grad():
        torch.testing.assert_close(load_decoder(folder)(TOKENS).logits, model(TOKENS).logits, atol=1e-4, rtol=1e-4)
    own, prepared = load_tokenizer(folder), load_tokenizer(paths.DATA)
    assert own.vocabulary_size != prepared.vocabulary_size
    ours, theirs = open_split(folder, "test"), open_split(paths.DATA, "test")
    assert own.decode(ours.tolist()) == prepared.decode(theirs.tolist()), "the held-out text is the same"
    ends = [int(np.sum(tokens == tokenizer.end_token_id)) for tokens, tokenizer in ((ours, own), (theirs, prepared))]
    assert ends[0] == ends[1] > 0, "documents end where they ended"
    assert set(quality()) == {"perplexity", "bits_per_byte", "task_loss", "task_accuracy", "exact_match"}


def test_a_gguf_file(run: Path) -> None:
    vocabulary = tokenizer_folder(run / "tokenizer")
    model = llama(vocabulary, tie_word_embeddings=True)
    write_gguf(run / "model.gguf", model, load_tokenizer(run / "tokenizer").backend)
    make_base(configuration(run / "model.gguf"), "small")
    with torch.no_grad():
        torch.testing.assert_close(
            load_decoder(base_folder("small"))(TOKENS).logits, model(TOKENS).logits, atol=1e-4, rtol=1e-4
        )
    text = "The quick fox, naïve: 1234."
    assert load_tokenizer(base_folder("small")).encode([text]) == load_tokenizer(run / "tokenizer").encode([text])


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_gguf_file_of_llama_3(run: Path, factor: float) -> None:
    """Its rotations are those of a checkpoint whose configuration stretches them, which the file says by divisors alone."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    vocabulary = tokenizer_folder(run / "tokenizer")
    stretching = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = llama(vocabulary, tie_word_embeddings=True, rope_parameters=stretching, initializer_range=0.2)
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    divisors = plain / ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")[0].numpy()
    backend = load_tokenizer(run / "tokenizer").backend
    write_gguf(run / "model.gguf", model, backend, {"rope_freqs.weight": divisors.astype(np.float32)})
    make_base(configuration(run / "model.gguf"), "small")
    tokens = torch.randint(vocabulary, (1, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = load_decoder(base_folder("small"))(tokens).logits, model(tokens).logits
        model.model.rotary_emb.inv_freq = torch.tensor(plain, dtype=torch.float32)
        unstretched = model(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (unstretched - expected).abs().max() > 1e-2, "the stretching is seen at this length"


def test_a_gguf_file_without_the_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = tokenizer_folder(run / "tokenizer")
    write_gguf(
        run / "model.gguf", llama(vocabulary, tie_word_embeddings=True), load_tokenizer(run / "tokenizer").backend
    )
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: False)
    with pytest.raises(
        ParameterError, match=r"model.gguf needs another package .*pip install -e '.\[gguf\]'"
    ) as caught:
        make_base(configuration(run / "model.gguf"), "small")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_package_names_that_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")

    llama(tokenizer_folder(run / "checkpoint")).save_pretrained(run / "checkpoint")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ParameterError) as caught:
        make_base(configuration(run / "checkpoint"), "small")
    assert str(caught.value).endswith(
        "checkpoint needs another package (No module named 'sentencepiece'): install sentencepiece"
    )


def test_other_families_are_refused_by_name(run: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    source = run / "gpt2"
    vocabulary = tokenizer_folder(source)
    GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2)).save_pretrained(source)
    with pytest.raises(ParameterError, match="models of type 'gpt2' cannot be read"):
        make_base(configuration(source), "small")
    assert not base_folder("small").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hub: a/b\nrevision: main\n", r"base.yaml: 'revision': .*pattern.*the file's keys are hub, revision"),
        ("package: no-such-package\nversion: '1'\nfile: a.gguf\nsha256: " + "a" * 64, "pip install no-such-package==1"),
        ("package: pytest\nversion: 0.0.1\nfile: a.gguf\nsha256: " + "a" * 64, "is installed, but the file names"),
        ("- 1\n", r"names none, or several, of hub, package, shape: exactly one"),
    ],
)
def test_unfit_descriptions(run: Path, content: str, message: str) -> None:
    (run / "base.yaml").write_text(content)
    with pytest.raises(ParameterError, match=message):
        make_base(configuration("base.yaml"), "small")


def test_damaged_and_unfit_checkpoints(run: Path) -> None:
    source = run / "checkpoint"
    vocabulary = tokenizer_folder(source)
    with pytest.raises(ParameterError, match=r"is no checkpoint: it needs a config\.json"):
        make_base(configuration(source), "small")
    llama(vocabulary, max_position_embeddings=16).save_pretrained(source)
    with pytest.raises(ParameterError, match=r"sequence_length.* is \d+, more than the 16 tokens"):
        make_base(configuration(source), "small")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        make_base(configuration(source), "small")
    (run / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        make_base(configuration("broken.gguf"), "small")
    assert not base_folder("small").exists()


def test_no_code_of_a_checkpoint_is_run(run: Path) -> None:
    source = run / "checkpoint"
    vocabulary = tokenizer_folder(source)
    llama(vocabulary).save_pretrained(source)
    described = json.loads((source / "config.json").read_text())
    described["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (source / "config.json").write_text(json.dumps(described))
    (source / "evil.py").write_text("raise SystemExit('run')\n")
    make_base(configuration(source), "small")
    assert (base_folder("small") / "model.safetensors").exists()


def test_a_shape_with_random_weights(run: Path) -> None:
    shape = {
        "vocabulary_size": 270, "hidden_size": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 32,
        "context_length": 64, "tie_embeddings": False, "block": "pre_norm", "mixer": "gqa", "position": "rope",
        "feedforward": "swiglu", "mixer_options": {}, "position_options": {}, "feedforward_options": {},
    }  # fmt: skip
    (run / "shape.yaml").write_text(json.dumps({"shape": shape}))
    make_base(configuration("shape.yaml"), "small")
    folder = base_folder("small")
    assert not list(folder.glob("*.safetensors")), "random weights take no room"
    first, second = load_decoder(folder), load_decoder(folder)
    torch.testing.assert_close(first(TOKENS).logits, second(TOKENS).logits)
    assert load_decoder(folder, dtype=torch.bfloat16).embed_tokens.weight.dtype == torch.bfloat16
    assert "random weights" in json.loads(paths.base_quality("small").read_text())["reason"]
    del shape["layers"]
    (run / "shape.yaml").write_text(json.dumps({"shape": shape}))
    with pytest.raises(ParameterError, match=r"shape\.yaml: .*lacks layers"):
        make_base(configuration("shape.yaml"), "small")
