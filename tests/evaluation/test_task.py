"""Scoring candidates after one cached prompt equals scoring each whole sequence."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from efficientllm.data.prompts import EncodedQuestion
from efficientllm.evaluation.perplexity import spread_windows, window_losses
from efficientllm.evaluation.task import score_questions
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=40, hidden_size=32, layers=2, heads=4, key_value_heads=2, intermediate_size=64,
        context_length=64, tie_embeddings=True, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={},
    )  # fmt: skip
    model = build_decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform, so that errors show
    return model


def random_questions(count: int) -> list[EncodedQuestion]:
    generator = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return generator.integers(1, 40, size=int(generator.integers(low, high))).tolist()

    return [
        EncodedQuestion(
            prompt=tokens(3, 20),
            answers=[tokens(1, 6) for _ in range(3 if index % 3 else 5)],
            correct=int(generator.integers(0, 3)),
            group="era",
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("together", [3, 256])
def test_scores_equal_whole_sequence_likelihoods(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """However many answers are computed together."""
    monkeypatch.setattr("efficientllm.evaluation.task._ANSWERS", together)
    questions = random_questions(17)
    scores = score_questions(decoder, questions, batch_size=4, pad_token=0, device=torch.device("cpu"))
    for index, question in enumerate(questions):
        means = []
        for candidate, answer in enumerate(question.answers):
            sequence = torch.tensor([question.prompt + answer])
            with torch.no_grad():
                logits = decoder(sequence[:, :-1]).logits[0, len(question.prompt) - 1 :]
            loss = float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
            means.append(loss / len(answer))
            if candidate == question.correct:
                assert scores.nats[index] == pytest.approx(loss, rel=1e-4)
                assert scores.tokens[index] == len(answer)
        assert scores.correct[index] == float(np.argmin(means) == question.correct)
    assert 0 < scores.correct.mean() < 1
    assert scores.loss == pytest.approx(scores.nats.sum() / scores.tokens.sum())


def greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(decoder(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_exact_match_is_what_greedy_decoding_gives(decoder: Decoder) -> None:
    """Half the references are the model's own greedy answers, half of those with their last token changed; some are free."""
    questions = []
    for index, question in enumerate(random_questions(16)):
        own = greedy(decoder, question.prompt, 3)
        reference = own if index % 4 < 2 else [*own[:-1], (own[-1] + 1) % 40]
        answers = [reference] if index % 2 else [reference, [7], [1, 2, 3, 4]]
        questions.append(EncodedQuestion(question.prompt, answers, 0, "era"))
    scores = score_questions(decoder, questions, batch_size=3, pad_token=0, device=torch.device("cpu"))
    assert scores.exact.tolist() == [float(index % 4 < 2) for index in range(16)]
    assert np.isnan(scores.correct).tolist() == [bool(index % 2) for index in range(16)], "one candidate is no choice"
    assert (scores.tokens == 3).all()


def test_answers_are_compared_by_their_mean_token_not_by_their_length(decoder: Decoder) -> None:
    """Summed, a long answer loses to a short one however likely its tokens are."""
    prompt = random_questions(1)[0].prompt
    likely = greedy(decoder, prompt, 6)
    ranked = decoder(torch.tensor([prompt])).logits[0, -1].softmax(dim=0).sort(descending=True)
    sums = -sum(
        float(decoder(torch.tensor([prompt + likely[:place]])).logits[0, -1].log_softmax(dim=0)[token])
        for place, token in enumerate(likely)
    )
    # a single token whose loss lies between the long answer's mean and its sum
    short = next(
        int(token)
        for probability, token in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
        if sums / 6 * 1.01 < -np.log(probability) < sums * 0.99
    )
    question = EncodedQuestion(prompt, [likely, [short]], 0, "era")
    scores = score_questions(decoder, [question], batch_size=1, pad_token=0, device=torch.device("cpu"))
    assert scores.correct.tolist() == [1.0]


def test_window_losses_ignore_what_lies_behind_the_end(decoder: Decoder) -> None:
    generator = np.random.default_rng(1)
    windows = generator.integers(0, 40, size=(5, 13))
    windows[-1, 6:] = -100
    losses = window_losses(decoder, windows, batch_size=2, device=torch.device("cpu"))
    assert losses.tokens.tolist() == [12, 12, 12, 12, 5]
    whole = torch.as_tensor(windows[-1:, :6])
    with torch.no_grad():
        expected = F.cross_entropy(decoder(whole[:, :-1]).logits[0], whole[0, 1:], reduction="sum")
    assert losses.nats[-1] == pytest.approx(float(expected), rel=1e-5)
    assert losses.mean == pytest.approx(losses.nats.sum() / 53)


def test_spread_windows() -> None:
    windows = np.arange(100).reshape(50, 2)
    taken = spread_windows(windows, 7)
    assert len(taken) == 7
    assert taken[0].tolist() == [0, 1]
    assert taken[-1].tolist() == [98, 99]
    assert spread_windows(windows, 60) is windows
