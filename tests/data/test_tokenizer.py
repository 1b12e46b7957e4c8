import json

import numpy as np
import pytest

from efficientllm.data import tokenizer as module
from efficientllm.data.tokenizer import (
    adopt_tokenizer,
    copy_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from efficientllm.errors import ArtifactError, DataError

TEXTS = ["the state of the union is strong\n\nthe union of the states", "naïve ☃ 雪 \u200d🧊\tend\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, 290)


def test_any_text_survives_the_round_trip(tokenizer):
    for text in [*TEXTS, "", "  two  spaces\n\n\n", "Ünïcödé — 日本語 🇩🇪", "\x00\x7f"]:
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_training_is_deterministic(tokenizer):
    assert train_tokenizer(TEXTS * 5, 290).backend.to_str() == tokenizer.backend.to_str()
    assert tokenizer.vocabulary_size == 290
    assert tokenizer.end_token_id == 0


def test_documents_end_with_the_end_token_and_cannot_fake_it(tokenizer):
    tokens = tokenizer.encode_documents(["one <|endoftext|> two", "three"])
    assert tokens.dtype == np.uint16
    assert (tokens == 0).sum() == 2 and tokens[-1] == 0
    first = tokens[: int(np.flatnonzero(tokens == 0)[0])]
    assert tokenizer.decode(first) == "one <|endoftext|> two"


def test_long_documents_are_encoded_in_parts_without_loss(tokenizer, monkeypatch):
    text = "the state of the union\n" * 20 + "x" * 120
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 50)
    tokens = tokenizer.encode_documents([text, "the"])
    assert (tokens == 0).sum() == 2
    assert tokenizer.decode(tokens[: int(np.flatnonzero(tokens == 0)[0])]) == text


def test_a_large_vocabulary_needs_32_bits(tokenizer, monkeypatch):
    monkeypatch.setattr(module.TextTokenizer, "vocabulary_size", 2**16 + 1)
    assert tokenizer.encode_documents(["one"]).dtype == np.uint32


def test_saved_files_load_here_and_in_transformers(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    copy = tmp_path / "model"
    copy.mkdir()
    copy_tokenizer(tmp_path, copy)
    ids = tokenizer.encode(TEXTS)
    assert load_tokenizer(copy).encode(TEXTS) == ids
    assert load_tokenizer(copy).end_token == tokenizer.end_token

    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(copy)
    assert loaded(TEXTS, add_special_tokens=False)["input_ids"] == ids
    assert [loaded.decode(row) for row in ids] == TEXTS
    assert loaded.eos_token_id == loaded.pad_token_id == 0


def test_missing_or_damaged_files(tokenizer, tmp_path):
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json is missing"):
        load_tokenizer(tmp_path)
    with pytest.raises(ArtifactError, match="is missing"):
        copy_tokenizer(tmp_path, tmp_path)
    save_tokenizer(tmp_path, tokenizer)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        load_tokenizer(tmp_path)


def test_an_existing_tokenizer_is_adopted_from_file_or_folder(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert adopt_tokenizer(path).encode(TEXTS) == tokenizer.encode(TEXTS)
    (tmp_path / "tokenizer_config.json").unlink()
    assert adopt_tokenizer(tmp_path).end_token == "<|endoftext|>"


def test_what_cannot_be_adopted_is_named(tokenizer, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        adopt_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(DataError, match=r"is not a tokenizer.json"):
        adopt_tokenizer(tmp_path)
    save_tokenizer(tmp_path, tokenizer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    with pytest.raises(DataError, match="<stop>"):
        adopt_tokenizer(tmp_path)
