"""Evaluations are kept under what decides them: whatever of it is another, they are done again."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientllm import config, paths
from efficientllm.config import Configuration
from efficientllm.data.tokenizer import TOKENIZER_FILE
from efficientllm.evaluation.outcomes import Outcomes
from efficientllm.evaluation.perplexity import WindowLosses
from efficientllm.measurement import kept_evaluations
from efficientllm.measurement.kept_evaluations import evaluation_key, keep, kept
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder

ROOT = Path(__file__).parents[2]
BASE = Path("artifacts/base/small")


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """The parameters, in a folder with the files whose content counts."""
    configuration = config.load(ROOT)
    monkeypatch.chdir(tmp_path)
    paths.DATA.mkdir(parents=True)
    BASE.mkdir(parents=True)
    for path in (paths.DATA / "manifest.json", paths.DATA / "test.npy", BASE / TOKENIZER_FILE, paths.HARDWARE):
        path.write_text(path.name)
    return configuration


@pytest.fixture
def decoder(make_config: Callable[..., DecoderConfig]) -> Decoder:
    """A model in bfloat16."""
    torch.manual_seed(0)
    return Decoder(make_config()).eval().to(torch.bfloat16)


def outcomes(correct: np.ndarray | None) -> Outcomes:
    return Outcomes(WindowLosses(np.array([1.25, 1 / 3]), np.array([7, 5])), correct)


@pytest.mark.parametrize("correct", [None, np.array([1.0, 0.0])])
def test_what_is_kept_comes_back_to_the_last_digit(loaded, decoder, correct):
    key = evaluation_key(loaded, decoder, BASE)
    assert kept(key) is None
    keep(key, outcomes(correct))
    found = kept(evaluation_key(loaded, copy.deepcopy(decoder), BASE))
    assert found is not None
    np.testing.assert_array_equal(found.losses.nats, [1.25, 1 / 3])
    np.testing.assert_array_equal(found.losses.tokens, [7, 5])
    assert found.correct is None if correct is None else (found.correct == correct).all()


def one_weight(decoder: Decoder) -> None:
    with torch.no_grad():
        decoder.embed_tokens.weight[3, 2] += 1


def another_text(decoder: Decoder) -> None:
    (BASE / "test.npy").write_text("the base's own tokens")


def another_machine(decoder: Decoder) -> None:
    paths.HARDWARE.write_text("another")


def another_vocabulary(decoder: Decoder) -> None:
    (BASE / TOKENIZER_FILE).write_text("another")


@pytest.mark.parametrize("change", [one_weight, another_text, another_machine, another_vocabulary])
def test_another_model_text_or_machine_is_evaluated_again(loaded, decoder, change: Callable[[Decoder], None]):
    before = evaluation_key(loaded, decoder, BASE)
    assert before == evaluation_key(loaded, decoder, BASE)
    change(decoder)
    assert before != evaluation_key(loaded, decoder, BASE)


def test_other_settings_and_code_are_evaluated_again(loaded, decoder, monkeypatch, tmp_path):
    before = evaluation_key(loaded, decoder, BASE)
    measure = loaded.profile.measure.model_copy(update={"perplexity_windows": 7})
    changed = copy.copy(loaded)
    object.__setattr__(changed, "profile", loaded.profile.model_copy(update={"measure": measure}))
    assert evaluation_key(changed, decoder, BASE) != before
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(kept_evaluations.efficientllm, "__file__", str(package / "__init__.py"))
    keys = {before, evaluation_key(loaded, decoder, BASE)}
    (package / "models" / "norms.py").write_text("epsilon = 1e-5")
    keys.add(evaluation_key(loaded, decoder, BASE))
    (package / "models" / "norms.py").write_text("epsilon = 1e-6")
    keys.add(evaluation_key(loaded, decoder, BASE))
    assert len(keys) == 4


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"windows": {"nats": ["x"], "tokens": [1]}, "correct": null}'])
def test_what_is_damaged_is_evaluated_again(loaded, decoder, content, capsys):
    key = evaluation_key(loaded, decoder, BASE)
    keep(key, outcomes(None))
    paths.evaluation(key).write_text(content)
    assert kept(key) is None
    assert "evaluating again" in capsys.readouterr().out
