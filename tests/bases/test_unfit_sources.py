"""A source whose files do not fit each other is one error about the source, and never a base with random or altered parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from base_sources import TEXT, configuration, llama, tokenizer_folder, write_gguf
from safetensors.torch import load_file, save_file

from efficientllm import paths
from efficientllm.bases.base import base_folder, make_base
from efficientllm.data.packing import open_split
from efficientllm.data.tokenizer import load_tokenizer, save_tokenizer
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import write_json
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.weights import load_decoder, save_decoder, save_random

Weights = dict[str, torch.Tensor]


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(dict(load_file(path))), path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)


def checkpoint(folder: Path, **changes: Any) -> Path:
    llama(tokenizer_folder(folder), **changes).save_pretrained(folder)
    return folder


def refused(source: Path, kind: type[Exception], message: str) -> None:
    """The base is refused by one line, and nothing is left of it."""
    with pytest.raises(kind, match=message) as caught:
        make_base(configuration(source), "small")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 420
    assert "artifacts/base" not in str(caught.value)
    assert not base_folder("small").exists()


SECOND_LAYER = "lacks 9 weights that .* asks for, the first model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: part for name, part in weights.items() if ".layers.1." not in name}, SECOND_LAYER),
        (
            lambda weights: {name: part for name, part in weights.items() if name != "lm_head.weight"},
            "base checkpoint lacks a weight that .* asks for, the first lm_head.weight",
        ),
        (
            lambda weights: {name.replace("model.layers", "transformer.h"): part for name, part in weights.items()},
            "lacks 18 weights .* the first model.layers.0.* holds 18 weights .* the first transformer.h.0",
        ),
    ],
)
def test_weights_that_a_checkpoint_lacks(run: Path, change: Callable[[Weights], Weights], message: str) -> None:
    checkpoint(Path("checkpoint"))
    edit_weights(Path("checkpoint"), change)
    refused(Path("checkpoint"), ArtifactError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "lacks 18 weights .* the first model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "holds 9 weights .* does not name, the first model.layers.1.input_layernorm.weight"),
        (
            {"intermediate_size": 100},
            r"model.layers.0.mlp.down_proj.weight is \[64, 96\] in the file and \[64, 100\] in .*; and 3 more",
        ),
    ],
)
def test_a_configuration_of_another_shape(run: Path, changes: dict[str, Any], message: str) -> None:
    checkpoint(Path("checkpoint"))
    edit_config(Path("checkpoint"), **changes)
    refused(Path("checkpoint"), ArtifactError, message)


def test_a_gguf_file_that_lacks_layers(run: Path) -> None:
    tokenizer_folder(Path("tokenizer"))
    model = llama(300, tie_word_embeddings=True)
    model.config.num_hidden_layers = 4
    write_gguf(Path("model.gguf"), model, load_tokenizer(Path("tokenizer")).backend)
    refused(Path("model.gguf"), ArtifactError, "base model.gguf lacks 18 weights .* the first model.layers.2")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"blk.1.{name}": (4,) for name in ("attn_norm.weight", "ffn_norm.weight", "ffn_up.weight")},
            "holds 3 weights that its metadata does not name, the first blk.1.attn_norm.weight: .* safetensors checkpoint",
        ),
        (
            {"blk.0.attn_q.bias": (64,)},
            "holds a weight that its metadata does not name, the first blk.0.attn_q.bias",
        ),
    ],
)
def test_a_gguf_file_with_more_than_its_metadata(run: Path, tensors: dict[str, tuple[int]], message: str) -> None:
    tokenizer_folder(Path("tokenizer"))
    model = llama(300, num_hidden_layers=1, tie_word_embeddings=True)
    backend = load_tokenizer(Path("tokenizer")).backend
    further = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    write_gguf(Path("model.gguf"), model, backend, further)
    refused(Path("model.gguf"), ArtifactError, f"base model.gguf {message}")
    write_gguf(Path("model.gguf"), model, backend)
    make_base(configuration("model.gguf"), "small")


@pytest.mark.parametrize(
    "divisors",
    [
        np.linspace(1, 8, 8, dtype=np.float32),
        np.ones(4, np.float32),
        np.array([1, 1, 1, 1, 1, 8, 8, np.nan], np.float32),
        np.ones(8, np.float16),
    ],
    ids=["gradual", "of narrower heads", "no number", "of another type"],
)
def test_a_gguf_file_whose_rotations_are_stretched_otherwise(run: Path, divisors: np.ndarray) -> None:
    tokenizer_folder(Path("tokenizer"))
    model, backend = llama(300, tie_word_embeddings=True), load_tokenizer(Path("tokenizer")).backend
    write_gguf(Path("model.gguf"), model, backend, {"rope_freqs.weight": divisors})
    refused(
        Path("model.gguf"), ArtifactError, r"base model.gguf stretches its rotations \(rope_freqs.weight\) in another"
    )


def test_tables_of_old_checkpoints_are_passed_over(run: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    def pythia(weights: Weights) -> Weights:
        for layer in range(2):
            attention = f"gpt_neox.layers.{layer}.attention"
            weights[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
            weights[f"{attention}.rotary_emb.inv_freq"] = torch.ones(2)
        return weights

    source = Path("pythia")
    shape = GPTNeoXConfig(
        vocab_size=tokenizer_folder(source), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    GPTNeoXForCausalLM(shape).save_pretrained(source)
    edit_weights(source, pythia)
    make_base(configuration(source), "small")

    checkpoint(Path("llama"))
    edit_weights(
        Path("llama"), lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    )
    make_base(configuration("llama"), "small")


@pytest.mark.parametrize(
    ("kind", "name"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int32, "I32")]
)
@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_are_codes_of_a_quantization(run: Path, kind: torch.dtype, name: str, shards: bool) -> None:
    source = Path("checkpoint")
    checkpoint(source)
    edit_weights(
        source, lambda weights: {k: v.to(kind) if k.endswith("mlp.up_proj.weight") else v for k, v in weights.items()}
    )
    file = "model.safetensors"
    if shards:
        file = "model-00001-of-00001.safetensors"
        names = list(load_file(source / "model.safetensors"))
        (source / "model.safetensors").rename(source / file)
        write_json(source / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict.fromkeys(names, file)})
    message = (
        f"base checkpoint: {file} holds model.layers.0.mlp.up_proj.weight as {name}, .* name the unquantized checkpoint"
    )
    refused(source, ArtifactError, message)


def test_a_quantized_checkpoint(run: Path) -> None:
    """With its configuration Transformers loads it, and the model is no plain one."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    checkpoint(Path("plain"))
    quantized = AutoModelForCausalLM.from_pretrained(
        "plain", trust_remote_code=False, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    tokenizer_folder(Path("checkpoint"))
    quantized.save_pretrained("checkpoint")
    refused(Path("checkpoint"), ParameterError, "base checkpoint is quantized, .*: name the unquantized checkpoint")


@pytest.mark.parametrize("same", [True, False])
def test_a_head_stored_beside_tied_embeddings(run: Path, same: bool) -> None:
    """Transformers computes with a stored head that differs, and so must the base."""
    from transformers import AutoModelForCausalLM

    source = checkpoint(Path("checkpoint"), tie_word_embeddings=True)

    def head(weights: Weights) -> Weights:
        embeddings = weights["model.embed_tokens.weight"]
        return weights | {"lm_head.weight": embeddings.clone() if same else embeddings.flip(0).contiguous()}

    edit_weights(source, head)
    make_base(configuration(source), "small")
    decoder = load_decoder(base_folder("small"))
    assert decoder.config.tie_embeddings == same
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)(tokens).logits
        torch.testing.assert_close(decoder(tokens).logits, expected, atol=1e-4, rtol=1e-4)


SHAPE = {
    "vocabulary_size": 270, "hidden_size": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 32,
    "context_length": 64, "tie_embeddings": False, "block": "pre_norm", "mixer": "gqa", "position": "rope",
    "feedforward": "swiglu", "mixer_options": {}, "position_options": {}, "feedforward_options": {},
}  # fmt: skip


def own(folder: Path) -> Path:
    save_decoder(folder, build_decoder(DecoderConfig(**SHAPE)))
    save_tokenizer(folder, load_tokenizer(paths.DATA))
    return folder


NORM = "decoder.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (lambda folder: edit_config(folder, layers="two"), ArtifactError, "config.json: layers is 'two' .* whole number"),
        (lambda folder: edit_config(folder, heads=True), ArtifactError, "config.json: heads is True .* whole number"),
        (lambda folder: edit_config(folder, mixer="mqaa"), ParameterError, "own/bad/config.json: unknown mixer 'mqaa'"),
        (
            lambda folder: edit_weights(folder, lambda weights: {k: v.to(torch.int8) for k, v in weights.items()}),
            ArtifactError, "is stored as I8, and a model needs one of F32",
        ),
        (
            lambda folder: edit_weights(folder, lambda weights: {k: v for k, v in weights.items() if k != NORM}),
            ArtifactError, f"{NORM} is absent in the file",
        ),
        (
            lambda folder: edit_weights(folder, lambda weights: weights | {NORM: torch.ones(7)}),
            ArtifactError, rf"{NORM} is \(7,\) in the file and \(32,\) in",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), ArtifactError, "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), ArtifactError, "model.safetensors is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), ArtifactError, "tokenizer.json is missing"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), ArtifactError, "tokenizer_config.json is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ArtifactError, "tokenizer in own/bad is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_folder_of_our_own(
    run: Path, spoil: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    source = own(Path("own/bad"))
    spoil(source)
    refused(source, kind, f"^bases.small: .*{message}")


def test_what_is_to_be_done_about_a_damaged_folder(run: Path) -> None:
    for folder, remedy in (
        (Path("own/bad"), "get own/bad again"),
        (paths.artifact("pretrain", "x"), "run `dvc repro`"),
    ):
        (own(folder) / "model.safetensors").unlink()
        refused(folder, ArtifactError, remedy)


def test_random_weights_without_a_seed(run: Path) -> None:
    save_random(Path("own"), DecoderConfig(**SHAPE), seed=0)
    save_tokenizer(Path("own"), load_tokenizer(paths.DATA))
    (Path("own") / "random-weights.json").write_text("{}")
    refused(Path("own"), ArtifactError, "^bases.small: own/random-weights.json names no seed")


def test_a_shape_of_words(run: Path) -> None:
    Path("shape.yaml").write_text(json.dumps({"shape": SHAPE | {"layers": "two"}}))
    refused(Path("shape.yaml"), ParameterError, "shape.yaml: layers is 'two'")


def test_fewer_embeddings_than_tokens(run: Path) -> None:
    source = Path("checkpoint")
    assert tokenizer_folder(source) == 300
    llama(270).save_pretrained(source)
    tokenizer = load_tokenizer(source)
    largest = max(max(ids) for ids in tokenizer.encode([f"Document 1. {TEXT * 60}"]))
    assert largest >= 270
    refused(
        source, ParameterError, r"bases.small .* is checkpoint, whose model has 270 embeddings, .* token \d+ of its"
    )


def with_a_token_more(folder: Path, token: str) -> int:
    """A checkpoint without an embedding for this token of its tokenizer; returns how many it has."""
    vocabulary = tokenizer_folder(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.backend.add_tokens([token])
    save_tokenizer(folder, tokenizer)
    llama(vocabulary).save_pretrained(folder)
    return vocabulary


def test_fewer_embeddings_than_the_task_has_tokens(run: Path) -> None:
    """A token of the task alone: the held-out text does without it."""
    source = Path("checkpoint")
    vocabulary = with_a_token_more(source, "Add.")
    refused(source, ParameterError, f"has {vocabulary} embeddings, too few for token {vocabulary} of its tokenizer")


def test_tokens_that_do_not_occur_need_no_embedding(run: Path) -> None:
    source = Path("checkpoint")
    vocabulary = with_a_token_more(source, "<|never|>")
    make_base(configuration(source), "small")
    assert open_split(base_folder("small"), "test").max() < vocabulary


@pytest.mark.parametrize("lossless", [True, False, None])
def test_a_prepared_tokenizer_with_loss(run: Path, lossless: bool | None) -> None:
    """The base's text is what that tokenizer gives back: of an altered text its bits per byte say nothing."""
    path = paths.DATA / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizer"].pop("lossless", None)
    if lossless is not None:
        manifest["tokenizer"]["lossless"] = lossless
    write_json(path, manifest)
    other, same = checkpoint(Path("checkpoint")), own(Path("own"))
    if lossless is False:
        refused(other, ParameterError, r"data.tokenizer.path names .* bases.small has another .* leave .* null")
        make_base(configuration(same), "small")
    else:
        make_base(configuration(other), "small")
