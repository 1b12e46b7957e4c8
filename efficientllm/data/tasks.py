"""The instruction task: made from the corpus' own labels, or the user's Alpaca-style JSONL."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientllm.data.document import Document
from efficientllm.data.sources.files import json_lines
from efficientllm.data.splits import SPLITS, Split
from efficientllm.errors import ArtifactError, DataError
from efficientllm.files import MISSING_REMEDY, UNREADABLE_REMEDY, write_text

_TASK_FOLDER = "task"
FILE_GROUP = "file"
# One in four asks for the president: it has some forty candidate answers, so scoring it costs seven times the era's.
_PRESIDENT_EVERY = 8
_INSTRUCTIONS = {"era": "Era from", "president": "Spoken by"}


@dataclass(frozen=True)
class Example:
    """One instruction example.

    Args:
        instruction: What to do.
        input: What to do it with; may be empty.
        output: The reference answer.
        choices: All candidate answers, the reference among them; empty where the answer is free.
        group: Name of the task that it belongs to; accuracy is reported by group.
        document: Document that the input is taken from; empty for the user's own rows.
    """

    instruction: str
    input: str
    output: str
    choices: tuple[str, ...]
    group: str
    document: str


def passages(text: str, words: int) -> list[str]:
    """Cuts a text into consecutive passages of `words` words, joined by single spaces; a shorter rest is dropped."""
    parts = text.split()
    return [" ".join(parts[start : start + words]) for start in range(0, len(parts) - words + 1, words)]


def corpus_task(
    divided: dict[Split, list[Document]], *, passage_words: int, training_examples: int, test_examples: int, seed: int
) -> dict[Split, list[Example]]:
    """Makes the default task: given a passage, name the first year of its 40-year era, or its president.

    Passages are drawn in turn from each era, so the eras are equally frequent (as long as their passages last) and
    always answering the commonest one is right in 1/6 of the cases. Every eighth example asks for the president
    instead; where the training split has no address of that president, it asks for the era too. A passage is used once,
    and stays in the split of its speech. The validation split has as many examples as the test split.

    Args:
        divided: Documents of each split, with the labels `era` and `president`.
        passage_words: Words in a passage.
        training_examples: Examples for training.
        test_examples: Examples for testing, and as many again for validation.
        seed: Decides the draw.

    Raises:
        DataError: A split has fewer passages than asked for.
    """
    choices = {
        group: tuple(sorted({_answer(document, group) for document in divided["train"]})) for group in _INSTRUCTIONS
    }
    wanted = {"train": training_examples, "validation": test_examples, "test": test_examples}
    return {
        split: _draw(
            divided[split], split, choices, passage_words, wanted[split], np.random.default_rng([seed, number])
        )
        for number, split in enumerate(SPLITS)
    }


def _draw(
    documents: Sequence[Document],
    split: Split,
    choices: dict[str, tuple[str, ...]],
    words: int,
    wanted: int,
    generator: np.random.Generator,
) -> list[Example]:
    by_era: dict[str, list[tuple[Document, str]]] = defaultdict(list)
    for document in documents:
        by_era[document.labels["era"]] += [(document, passage) for passage in passages(document.text, words)]
    available = sum(map(len, by_era.values()))
    if available < wanted:
        key = "training_examples" if split == "train" else "test_examples"
        raise DataError(
            f"data.task.{key} is {wanted}, but the {split} split has {available} passages of {words} words: lower it "
            "or data.task.passage_words, or give the split a larger fraction"
        )
    rounds = []
    for _, entries in sorted(by_era.items()):
        order = generator.permutation(len(entries))
        rounds += [(number, int(position), entries) for number, position in enumerate(order)]
    rounds.sort(key=lambda entry: entry[0])
    examples = []
    for number, position, entries in rounds[:wanted]:
        document, passage = entries[position]
        asked = (
            number % _PRESIDENT_EVERY == _PRESIDENT_EVERY - 1 and document.labels["president"] in choices["president"]
        )
        group = "president" if asked else "era"
        examples.append(
            Example(_INSTRUCTIONS[group], passage, _answer(document, group), choices[group], group, document.identifier)
        )
    return [examples[position] for position in generator.permutation(len(examples))]


def _answer(document: Document, group: str) -> str:
    """The era "1790-1829" is named by "1790": half the tokens to train on and to score, as well learned."""
    return document.labels[group].partition("-")[0] if group == "era" else document.labels[group]


def read_task(path: Path) -> list[Example]:
    """Reads the user's task: one JSON object a line with `instruction`, `output`, and optionally `input` and `choices`.

    Args:
        path: The JSONL file.

    Raises:
        DataError: A line breaks the format; the message names the file and the line.
    """
    return [_example(value, f"{path}, line {number}") for number, value in json_lines(path)]


def _example(value: object, where: str) -> Example:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object with the fields instruction, input, output")
    text: dict[str, str] = {}
    for name, required in (("instruction", True), ("input", False), ("output", True)):
        content = value.get(name, None if required else "")
        if not isinstance(content, str) or (required and not content.strip()):
            fault = "missing" if name not in value else "not a text or empty"
            raise DataError(f"{where}: field {name!r} is {fault}: each line needs an instruction and an output")
        text[name] = content.replace("\r\n", "\n")
    choices = value.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: field 'choices' is not a list of texts")
    choices = [choice.replace("\r\n", "\n") for choice in choices]
    if choices and text["output"] not in choices:
        raise DataError(f"{where}: the output {text['output']!r} is not among its choices: add it to them")
    if choices and (len(set(choices)) != len(choices) or len(choices) < 2):
        raise DataError(f"{where}: choices must be at least two different texts")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: holds a lone surrogate, which is not Unicode text") from error
    return Example(text["instruction"], text["input"], text["output"], tuple(choices), FILE_GROUP, "")


def file_task(
    examples: Sequence[Example],
    *,
    validation_fraction: float,
    test_fraction: float,
    training_examples: int,
    test_examples: int,
    seed: int,
) -> dict[Split, list[Example]]:
    """Divides the user's examples.

    Identical rows are kept once, and rows with the same instruction and input go to the same split, so that no question
    of the test split was trained on.

    Args:
        examples: What `read_task` returned.
        validation_fraction: Share of the questions for validation.
        test_fraction: Share of the questions for testing.
        training_examples: The most examples to take for training.
        test_examples: The most examples to take for testing, and for validation.
        seed: Decides the order.

    Raises:
        DataError: There are fewer than three different questions, or too few for these fractions.
    """
    questions: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in dict.fromkeys(examples):
        questions[example.instruction, example.input].append(example)
    if len(questions) < len(SPLITS):
        raise DataError(
            f"data.task.path has {len(questions)} different questions, too few for three splits: give at least 3"
        )
    rows = list(questions.values())
    order = [rows[position] for position in np.random.default_rng(seed).permutation(len(rows))]
    test = max(1, round(test_fraction * len(order)))
    validation = max(1, round(validation_fraction * len(order)))
    parts: dict[Split, list[list[Example]]] = {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :],
    }
    if empty := [split for split in SPLITS if not parts[split]]:
        raise DataError(
            f"data.task.path has {len(order)} different questions, of which data.test_fraction {test_fraction} takes "
            f"{len(parts['test'])} and data.validation_fraction {validation_fraction} {len(parts['validation'])}, which "
            f"leaves none for {' and '.join(empty)}: lower the fractions, or give more questions"
        )
    limits: dict[Split, int] = {"train": training_examples, "validation": test_examples, "test": test_examples}
    return {split: [example for row in parts[split] for example in row][: limits[split]] for split in SPLITS}


def task_texts(task: dict[Split, list[Example]]) -> list[str]:
    """Every different text of a task: instructions, inputs, outputs and choices."""
    examples = [example for split in SPLITS for example in task[split]]
    texts = ((example.instruction, example.input, example.output, *example.choices) for example in examples)
    return list(dict.fromkeys(text for one in texts for text in one))


def task_path(folder: Path, split: str) -> Path:
    """The file of a split's examples."""
    return folder / _TASK_FOLDER / f"{split}.jsonl"


def write_examples(folder: Path, split: Split, examples: Sequence[Example]) -> None:
    """Writes the examples of a split as `task/<split>.jsonl`, one JSON object a line."""
    lines = [json.dumps(asdict(example), ensure_ascii=False, sort_keys=True) for example in examples]
    write_text(task_path(folder, split), "".join(f"{line}\n" for line in lines))


def load_examples(folder: Path, split: str) -> list[Example]:
    """Loads the examples of a split that `prepare` wrote.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    path = task_path(folder, split)
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {MISSING_REMEDY}")
    try:
        return [Example(**{**value, "choices": tuple(value["choices"])}) for _, value in json_lines(path)]
    except (DataError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {UNREADABLE_REMEDY}") from error


def task_facts(task: dict[Split, list[Example]]) -> dict[str, dict[str, Any]]:
    """Counts the examples of each group, and how far always giving one answer gets.

    Returns:
        By group: examples in each split, number of choices (null where answers are free or differ from example to
        example), the commonest answer of the training split and the share of the test split that it is right for.
    """
    facts: dict[str, dict[str, Any]] = {}
    for group in sorted({example.group for examples in task.values() for example in examples}):
        rows = {split: [example for example in task[split] if example.group == group] for split in SPLITS}
        answers = Counter(example.output for example in rows["train"])
        commonest = min(answers, key=lambda answer: (-answers[answer], answer)) if answers else None
        sets = {example.choices for split in SPLITS for example in rows[split]}
        test = rows["test"]
        facts[group] = {
            "examples": {split: len(rows[split]) for split in SPLITS},
            "choices": len(next(iter(sets))) or None if len(sets) == 1 else None,
            "majority_answer": commonest,
            "majority_accuracy": sum(example.output == commonest for example in test) / len(test) if test else None,
        }
    return facts
