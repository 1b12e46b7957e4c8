"""A base whose own tokenizer loses the held-out text would be judged on another text."""

import json
from pathlib import Path
from typing import Any

import pytest
from base_sources import TEXT, configuration, llama, tokenizer_folder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from efficientllm import paths
from efficientllm.bases.base import base_folder, make_base
from efficientllm.bases.kept_text import check_text_kept
from efficientllm.data.prepare import prepare
from efficientllm.data.tokenizer import TextTokenizer, load_tokenizer, save_tokenizer
from efficientllm.errors import ParameterError


def of_characters(characters: str, **options: Any) -> TextTokenizer:
    """A tokenizer that knows these characters and no other."""
    vocabulary = {token: number for number, token in enumerate(["</s>", "<unk>", *sorted(set(characters))])}
    return TextTokenizer(Tokenizer(models.BPE(vocabulary, [], **options)), "</s>")


def base_with(tokenizer: TextTokenizer) -> Path:
    source = Path("checkpoint")
    llama(300).save_pretrained(source)
    save_tokenizer(source, tokenizer)
    return source


KNOWN = TEXT + "Document 0123456789."


@pytest.mark.parametrize(
    "options",
    [{"unk_token": "<unk>"}, {}],
    ids=["unknown token", "dropped without one"],
)
def test_a_tokenizer_without_a_character_of_the_text(run: Path, options: dict[str, Any]) -> None:
    source = base_with(of_characters(KNOWN.replace("ï", ""), **options))
    with pytest.raises(
        ParameterError,
        match=r"bases.small .* is checkpoint, whose tokenizer loses \d+ of \d+ characters .* most frequent 'ï': .* name",
    ) as caught:
        make_base(configuration(source), "small")
    assert len(str(caught.value)) < 420
    assert not base_folder("small").exists()


def test_a_tokenizer_that_lowercases(run: Path) -> None:
    tokenizer = of_characters(KNOWN)
    tokenizer.backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ParameterError, match="most frequent 'T'"):
        make_base(configuration(base_with(tokenizer)), "small")


def test_a_tokenizer_that_loses_little(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One character at each document's beginning."""
    make_base(configuration(base_with(of_characters(KNOWN.replace("D", ""), unk_token="<unk>"))), "small")
    assert "bases.small: the tokenizer of checkpoint loses 1 of " in capsys.readouterr().out
    assert (base_folder("small") / "test.npy").exists()


@pytest.mark.parametrize("composes", [True, False])
def test_a_tokenizer_that_composes_characters(run: Path, composes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text to Unicode: Qwen2's and Pythia's tokenizers do so."""
    documents = [{"text": f"Document {n}. " + "nai\u0308ve cafe\u0301 words. " * 200} for n in range(4)]
    Path("corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    prepare(configuration("artifacts/pretrain/dense_small"), paths.DATA)
    tokenizer_folder(Path("checkpoint"))
    tokenizer = load_tokenizer(Path("checkpoint"))
    if composes:
        tokenizer.backend.normalizer = normalizers.NFC()
    make_base(configuration(base_with(tokenizer)), "small")
    assert "loses" not in capsys.readouterr().out


@pytest.mark.parametrize(("lost", "refused"), [(1, False), (2, True)])
def test_one_character_in_a_hundred(lost: int, refused: bool, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a" * 60, "b" * 40]
    returned = "ab" + "b" * (39 - lost) + "a" * 59
    if refused:
        with pytest.raises(ParameterError, match="loses 2 of 100 characters"):
            check_text_kept("small", Path("x"), texts, returned)
    else:
        check_text_kept("small", Path("x"), texts, returned)
        assert capsys.readouterr().out.count("\n") == 1


def test_spaces_that_are_added_lose_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the tokenizers of Llama 2 and what is built like it do before each document."""
    tokenizer_folder(Path("checkpoint"))
    tokenizer = load_tokenizer(Path("checkpoint"))
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    make_base(configuration(base_with(tokenizer)), "small")
    assert "loses" not in capsys.readouterr().out
