"""Instruction examples as token ids: one compact template, the loss on the answer only.

    {input}
    {instruction} {answer}<end of document>

The input comes first, as running text as the model was pretrained on, and the instruction stands next to the answer: a
model of a million parameters need not carry the question across the passage. Prompt and answer are encoded apart, so
that the boundary between them is a token boundary for every candidate answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientllm.data.packing import IGNORED
from efficientllm.data.tasks import Example, load_examples, task_path
from efficientllm.data.tokenizer import TextTokenizer, load_tokenizer
from efficientllm.errors import DataError

_STEPS_TO_COMPILE = 100
"""Steps of a training's longest batch that take as long as compiling one more width (docs/log.md)."""


@dataclass(frozen=True)
class EncodedExample:
    """An example for training.

    Args:
        token_ids: Prompt, answer, end token.
        prompt_length: How many of them are the prompt.
    """

    token_ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class EncodedQuestion:
    """An example for scoring its candidate answers.

    Args:
        prompt: Token ids of the prompt, the same for all candidates.
        answers: Token ids of each candidate, the end token included; of the reference answer alone where answers are free.
        correct: Position of the reference answer among them.
        group: The example's group.
    """

    prompt: list[int]
    answers: list[list[int]]
    correct: int
    group: str


def encode_split(
    folder: Path, split: str, maximum_length: int, *, tokenizer_folder: Path | None = None
) -> list[EncodedExample]:
    """Loads and encodes the examples of a split; of a long one the end of its input is cut, never its instruction or answer.

    Args:
        folder: Folder that `prepare` wrote.
        split: `train`, `validation` or `test`.
        maximum_length: The most tokens of an example, the end token included.
        tokenizer_folder: Folder of the model whose tokenizer is used; by default that of the prepared data.

    Raises:
        ArtifactError: The task or the tokenizer is missing or damaged.
        DataError: The instruction and the answer of a row are longer than `maximum_length`.
    """
    where = str(task_path(folder, split))
    tokenizer = load_tokenizer(tokenizer_folder or folder)
    return _encode(tokenizer, load_examples(folder, split), maximum_length, where)


def encode_questions(
    folder: Path, split: str, maximum_length: int, *, tokenizer_folder: Path | None = None
) -> list[EncodedQuestion]:
    """Loads the examples of a split, and encodes every candidate answer: the choices, or the one reference of a free answer.

    A prompt is cut so that its longest candidate fits, and so is the same for all of them.

    Args:
        folder: Folder that `prepare` wrote.
        split: `train`, `validation` or `test`.
        maximum_length: The most tokens of a prompt and one answer, the end token included.
        tokenizer_folder: Folder of the model whose tokenizer is used; by default that of the prepared data.

    Raises:
        ArtifactError: The task or the tokenizer is missing or damaged.
        DataError: The instruction and an answer of a row are longer than `maximum_length`.
    """
    tokenizer = load_tokenizer(tokenizer_folder or folder)
    where = str(task_path(folder, split))
    examples = load_examples(folder, split)
    choices = [example.choices or (example.output,) for example in examples]
    answers = _encode_answers(tokenizer, {choice for listed in choices for choice in listed})
    prompts = _encode_prompts(tokenizer, examples)
    questions = []
    for number, (example, listed, prompt) in enumerate(zip(examples, choices, prompts, strict=True), start=1):
        candidates = [answers[choice] for choice in listed]
        fitted = _fit(*prompt, max(map(len, candidates)), maximum_length, f"{where}, line {number}")
        questions.append(EncodedQuestion(fitted, candidates, listed.index(example.output), example.group))
    return questions


def collate(
    examples: Sequence[EncodedExample], pad_id: int = 0, widths: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Pads examples on the right and masks what bears no loss.

    Args:
        examples: Encoded examples, B of them.
        pad_id: Token that fills the input; any will do, for it comes last and has no label.
        widths: The only values that T may have, of which the least that fits is taken; by default T is the longest
            example's length.

    Returns:
        Input ids and labels, both int64 `[B, T]` and not shifted; labels are -100 on prompt and padding.
    """
    width = fitting_width(max(len(example.token_ids) for example in examples), widths)
    inputs = np.full((len(examples), width), pad_id, np.int64)
    labels = np.full((len(examples), width), IGNORED, np.int64)
    for row, example in enumerate(examples):
        length = len(example.token_ids)
        inputs[row, :length] = example.token_ids
        labels[row, example.prompt_length : length] = example.token_ids[example.prompt_length :]
    return inputs, labels


def fitting_width(longest: int, widths: Sequence[int]) -> int:
    """The least of the widths that holds a batch's longest example; its own length where none does, or none is given."""
    return min((allowed for allowed in widths if allowed >= longest), default=longest)


def few_widths(batches: Sequence[int]) -> list[int]:
    """Widths of a training's batches where a program is compiled for each width: some quarters of the longest batch.

    A quarter that would save less than its compiling takes is left out, and its batches take the next wider one, so that a short
    training has one width.

    Args:
        batches: Length of the longest example of each batch.
    """
    longest = max(batches)
    widths, waiting, narrower = list[int](), 0, 0
    for quarter in (1, 2, 3):
        width = math.ceil(longest * quarter / 4)
        waiting += sum(narrower < batch <= width for batch in batches)
        if waiting * (1 - width / longest) >= _STEPS_TO_COMPILE:
            widths.append(width)
            waiting = 0
        narrower = width
    return [*widths, longest]


def _encode(
    tokenizer: TextTokenizer, examples: Sequence[Example], maximum_length: int, where: str
) -> list[EncodedExample]:
    answers = _encode_answers(tokenizer, {example.output for example in examples})
    encoded = []
    for number, (example, prompt) in enumerate(
        zip(examples, _encode_prompts(tokenizer, examples), strict=True), start=1
    ):
        answer = answers[example.output]
        fitted = _fit(*prompt, len(answer), maximum_length, f"{where}, line {number}")
        encoded.append(EncodedExample(fitted + answer, len(fitted)))
    return encoded


def _encode_answers(tokenizer: TextTokenizer, answers: set[str]) -> dict[str, list[int]]:
    ordered = sorted(answers)
    encoded = tokenizer.encode([f" {answer}" for answer in ordered])
    return {answer: [*ids, tokenizer.end_token_id] for answer, ids in zip(ordered, encoded, strict=True)}


def _encode_prompts(tokenizer: TextTokenizer, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Encodes input and instruction of each example apart."""
    inputs = tokenizer.encode([example.input for example in examples])
    questions = tokenizer.encode(
        [f"\n{example.instruction}" if example.input else example.instruction for example in examples]
    )
    return list(zip(inputs, questions, strict=True))


def _fit(passage: list[int], question: list[int], answer_length: int, maximum_length: int, where: str) -> list[int]:
    room = maximum_length - len(question) - answer_length
    if room < 0:
        raise DataError(
            f"{where}: instruction ({len(question)} tokens) and answer ({answer_length}) are longer than the "
            f"{maximum_length} tokens of tune.training.sequence_length: raise it, or shorten them"
        )
    return passage[:room] + question
