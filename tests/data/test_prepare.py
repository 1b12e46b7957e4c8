import json
import string
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from efficientllm.config.load import Configuration, read_yaml
from efficientllm.config.schema import Parameters, Profile
from efficientllm.data.manifest import read_manifest
from efficientllm.data.packing import open_split
from efficientllm.data.prepare import prepare
from efficientllm.data.prompts import encode_questions, encode_split
from efficientllm.data.tasks import load_examples
from efficientllm.data.tokenizer import load_tokenizer
from efficientllm.errors import ArtifactError, DataError
from efficientllm.files import CHECKSUMS_FILE, file_hash

ROOT = Path(__file__).parents[2]


def configuration(data=None, training=None):
    profile = read_yaml(ROOT / "profiles" / "smoke.yaml")
    profile["data"].update(data or {})
    profile["pretrain"]["training"].update(training or {})
    parameters = Parameters.model_validate(read_yaml(ROOT / "params.yaml"))
    return Configuration(parameters, Profile.model_validate(profile))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(configuration(), folder)
    return folder


@pytest.fixture
def own_data(tmp_path):
    """Settings for four small documents, one of them twice, and a task of six questions."""
    texts = ["one two three. " * 30, "four five\r\nsix. " * 30, "seven eight nine ☃ " * 30, "ten. " * 60]
    rows = [json.dumps({"text": text}) for text in [*texts, texts[0]]]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    questions = [{"instruction": "Add.", "input": f"{n}+1", "output": str(n + 1)} for n in range(6)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    return {
        "source": "files",
        "files": {"paths": [str(tmp_path / "*pus.jsonl")], "text_field": "text", "licence": "CC0"},
        "tokenizer": {"train_vocabulary_size": 270, "path": None},
        "task": {
            "source": "file", "path": str(tmp_path / "task.jsonl"),
            "passage_words": 40, "training_examples": 100, "test_examples": 10,
        },
    }  # fmt: skip


def test_the_manifest_describes_what_is_there(prepared):
    manifest = read_manifest(prepared)
    assert manifest["source"]["name"] == "sotu"
    assert manifest["vocabulary_size"] == 512
    assert manifest["tokenizer"]["lossless"] is True
    for split in ("train", "validation", "test"):
        facts, tokens = manifest["splits"][split], open_split(prepared, split)
        assert facts["tokens"] == len(tokens)
        assert (tokens == manifest["tokenizer"]["end_token_id"]).sum() == facts["documents"]
        assert tokens.max() < manifest["vocabulary_size"]
    assert set(manifest["files"]) == {
        path.relative_to(prepared).as_posix() for path in prepared.rglob("*") if path.is_file()
    } - {"manifest.json", CHECKSUMS_FILE}  # fmt: skip
    for name, facts in manifest["files"].items():
        assert facts == {"bytes": (prepared / name).stat().st_size, "sha256": file_hash(prepared / name)}


def test_the_tokens_are_the_text(prepared):
    tokens, manifest = open_split(prepared, "test"), read_manifest(prepared)
    text = load_tokenizer(prepared).decode(tokens.tolist())
    assert len(text.encode()) == manifest["splits"]["test"]["bytes"]


def test_the_baselines_beat_a_uniform_guess_and_context_helps(prepared):
    found = read_manifest(prepared)["baselines"]
    assert 1 < found["bigram"]["perplexity"] < found["unigram"]["perplexity"] < 512
    assert 0 < found["bigram"]["bits_per_byte"] < found["unigram"]["bits_per_byte"] < 8


def test_the_task_is_encodable_and_complete(prepared):
    groups = read_manifest(prepared)["task"]["groups"]
    assert (
        sum(group["examples"]["train"] for group in groups.values()) == len(encode_split(prepared, "train", 64)) == 200
    )
    assert len(encode_questions(prepared, "test", 64)) == 24
    assert groups["era"]["choices"] == 6
    assert groups["era"]["majority_accuracy"] == pytest.approx(1 / 6, abs=0.07)


def test_twice_the_same_bytes(own_data, tmp_path):
    for name in ("first", "second"):
        prepare(configuration(own_data), tmp_path / name)
    first, second = tmp_path / "first", tmp_path / "second"
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 10
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_own_files_and_own_tokenizer(own_data, prepared, tmp_path):
    own_data["tokenizer"] = {"train_vocabulary_size": None, "path": str(prepared)}
    manifest = prepare(configuration(own_data), tmp_path / "data")
    assert manifest["source"]["duplicate_documents_removed"] == 1
    assert manifest["source"]["documents"] == sum(facts["documents"] for facts in manifest["splits"].values()) == 4
    assert manifest["source"]["licence"] == "CC0"
    assert manifest["vocabulary_size"] == 512
    assert manifest["task"]["groups"]["file"]["choices"] is None
    assert manifest["tokenizer"]["lossless"] is True
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == (prepared / "tokenizer.json").read_bytes()
    texts = [
        load_tokenizer(tmp_path / "data").decode(open_split(tmp_path / "data", name)) for name in ("train", "test")
    ]
    assert not any("\r" in text for text in texts)


def test_a_corpus_too_small_leaves_nothing_behind(own_data, tmp_path):
    destination = tmp_path / "out" / "data"
    with pytest.raises(DataError, match=r"batch of 4000.*pretrain\.training\.batch_size"):
        prepare(configuration(own_data, {"batch_size": 4000}), destination)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_manifest_of_another_kind(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read_manifest(tmp_path)


def test_no_time_and_no_machine_in_the_manifest(prepared):
    text = (prepared / "manifest.json").read_text()
    assert str(ROOT) not in text and str(prepared) not in text
    assert np.all([word not in text for word in ("time", "host", "date")])


def test_the_addresses_task_goes_with_any_corpus(own_data, tmp_path):
    own_data["task"] |= {"source": "sotu", "path": None, "passage_words": 20}
    prepare(configuration(own_data), tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    assert manifest["source"]["name"] == "files"
    assert set(manifest["task"]["groups"]) == {"era", "president"}
    passages = {
        split: {example.input for example in load_examples(tmp_path / "data", split)} for split in ("train", "test")
    }
    assert passages["train"]
    assert not passages["train"] & passages["test"]


def letters_only(path: Path, letters: str) -> str:
    """Writes a BPE without bytes and without an unknown token, which drops what it does not know."""
    vocabulary = {letter: number for number, letter in enumerate(["</s>", *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.Fuse()
    backend.save(str(path))
    return str(path)


def test_a_tokenizer_that_knows_the_first_document_only_is_refused(own_data, tmp_path):
    texts = ["All of this is English. " * 90]
    texts += [f"Это по-русски, {number}. " * 90 for number in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    path = letters_only(tmp_path / "tokenizer.json", string.printable)
    own_data["tokenizer"] = {"train_vocabulary_size": None, "path": path}
    with pytest.raises(DataError, match=r"tokenizer\.json does not know \d+ of \d+ characters .* such as '\w': choose"):
        prepare(configuration(own_data), tmp_path / "data")


@pytest.mark.parametrize(("loses", "lossless"), [("corpus", False), ("task", False), (None, True)])
def test_the_manifest_says_whether_the_tokenizer_loses_anything(own_data, tmp_path, loses, lossless):
    texts = [f"text {number} " * 90 + ("☃" if loses == "corpus" else "") for number in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    if loses == "task":
        questions = [{"instruction": "Add.", "input": f"{n}+1", "output": "☃"} for n in range(6)]
        (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, questions)))
    path = letters_only(tmp_path / "tokenizer.json", string.printable)
    own_data["tokenizer"] = {"train_vocabulary_size": None, "path": path}
    assert prepare(configuration(own_data), tmp_path / "data")["tokenizer"]["lossless"] is lossless
