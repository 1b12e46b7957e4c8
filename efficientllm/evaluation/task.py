"""Accuracy, exact match and loss on the instruction task, by the likelihood of candidate answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from efficientllm.data.packing import IGNORED
from efficientllm.data.prompts import EncodedQuestion
from efficientllm.models.decoder import Decoder
from efficientllm.training.losses import token_losses

_ANSWERS = 256
"""Answers that are computed together behind their prompts, each of which has a copy of its prompt's cache."""


@dataclass(frozen=True)
class TaskScores:
    """Outcome of each question, in the questions' order.

    Args:
        correct: 1.0 where the reference answer is the likeliest candidate by mean log-likelihood per token; nan where it is
            the only one.
        exact: 1.0 where greedy decoding gives the reference answer to its end: where each of its tokens is the likeliest
            after those before it.
        nats: Summed cross-entropy of the reference answer.
        tokens: Tokens of the reference answer.
    """

    correct: np.ndarray
    exact: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per answer token."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.inference_mode()
def score_questions(
    decoder: Decoder, questions: Sequence[EncodedQuestion], batch_size: int, pad_token: int, device: torch.device
) -> TaskScores:
    """Scores every candidate answer of every question; each prompt is computed once.

    Args:
        decoder: The model, in evaluation mode.
        questions: The questions.
        batch_size: Prompts that are computed together.
        pad_token: Token that fills shorter prompts (left) and answers (right); it is masked.
        device: Where the model lies.
    """
    correct, exact, nats, tokens = (np.zeros(len(questions)) for _ in range(4))
    # questions of like shape share a batch, so that little of it is padding
    order = sorted(
        range(len(questions)), key=lambda index: (len(questions[index].answers), len(questions[index].prompt))
    )
    start = 0
    while start < len(order):
        candidates = len(questions[order[start]].answers)
        batch = [index for index in order[start : start + batch_size] if len(questions[index].answers) == candidates]
        start += len(batch)
        losses, lengths, greedy = _candidate_losses(decoder, [questions[index] for index in batch], pad_token, device)
        for position, index in enumerate(batch):
            reference = questions[index].correct
            means = losses[position] / lengths[position]
            correct[index] = float(means.argmin() == reference) if candidates > 1 else np.nan
            exact[index] = float(greedy[position, reference])
            nats[index], tokens[index] = losses[position, reference], lengths[position, reference]
    return TaskScores(correct, exact, nats, tokens)


def _candidate_losses(
    decoder: Decoder, questions: list[EncodedQuestion], pad_token: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every candidate of questions with equally many, `[questions, candidates]`: summed loss, length, whether it is greedy's."""
    candidates = len(questions[0].answers)
    width = max(len(question.prompt) for question in questions)
    answers = [answer for question in questions for answer in question.answers]
    prompts = torch.full((len(questions), width), pad_token)
    mask = torch.zeros(len(questions), width, dtype=torch.bool)
    for row, question in enumerate(questions):
        prompts[row, width - len(question.prompt) :] = torch.tensor(question.prompt)
        mask[row, width - len(question.prompt) :] = True
    padding = None if bool(mask.all()) else mask.to(device)
    cache = decoder.new_cache(len(questions), width + max(len(answer) for answer in answers))
    hidden = decoder.hidden_states(prompts.to(device), cache=cache, padding_mask=padding)
    first = decoder.project(hidden[:, -1:])
    losses, greedy = np.zeros(len(answers)), np.zeros(len(answers), dtype=bool)
    # answers of like length share a batch, so that little of it is padding
    rows = sorted(range(len(answers)), key=lambda row: len(answers[row]))
    for start in range(0, len(rows), _ANSWERS):
        taken = rows[start : start + _ANSWERS]
        asked = torch.tensor([row // candidates for row in taken], device=device)
        labels = _padded([answers[row] for row in taken]).to(device)
        inputs = labels.masked_fill(labels == IGNORED, pad_token)[:, :-1]
        logits = first[asked]
        if inputs.shape[1]:
            logits = torch.cat([logits, decoder(inputs, cache=cache.take(asked)).logits], dim=1)
        losses[taken] = token_losses(logits, labels).double().sum(dim=1).cpu().numpy()
        greedy[taken] = ((logits.argmax(dim=-1) == labels) | (labels == IGNORED)).all(dim=1).cpu().numpy()
    shape = (len(questions), candidates)
    lengths = np.array([len(answer) for answer in answers])
    return losses.reshape(shape), lengths.reshape(shape), greedy.reshape(shape)


def _padded(answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Stacks token ids `[answers, longest]`; what lies behind an answer bears no loss."""
    labels = torch.full((len(answers), max(len(answer) for answer in answers)), IGNORED)
    for row, answer in enumerate(answers):
        labels[row, : len(answer)] = torch.tensor(answer)
    return labels
