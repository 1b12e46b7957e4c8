import json

import pytest

from efficientllm.data.document import Document
from efficientllm.data.splits import SPLITS
from efficientllm.data.tasks import (
    Example,
    corpus_task,
    file_task,
    load_examples,
    passages,
    read_task,
    task_facts,
    write_examples,
)
from efficientllm.errors import ArtifactError, DataError

FILE_SETTINGS = {
    "validation_fraction": 0.1, "test_fraction": 0.2, "training_examples": 1000, "test_examples": 1000, "seed": 0,
}  # fmt: skip


def speech(name, era, president, words=200):
    text = " ".join(f"{name}-{number}" for number in range(words))
    return Document(name, text, {"era": era, "president": president})


@pytest.fixture
def divided():
    return {
        "train": [
            speech(f"a{number}", era, president) for number, (era, president) in enumerate([("x", "P"), ("y", "Q")] * 3)
        ],
        "validation": [speech("b0", "x", "P"), speech("b1", "y", "Q")],
        "test": [speech("c0", "x", "P"), speech("c1", "y", "Unknown")],
    }


def test_passages_are_consecutive_and_whole():
    assert passages("a b\nc  d e", 2) == ["a b", "c d"]
    assert passages("a", 2) == []


def make(divided, **changes):
    settings = {"passage_words": 10, "training_examples": 80, "test_examples": 32, "seed": 0}
    return corpus_task(divided, **(settings | changes))


def test_passages_stay_in_their_speechs_split_and_are_used_once(divided):
    task = make(divided)
    assert [len(task[split]) for split in SPLITS] == [80, 32, 32]
    for split in SPLITS:
        assert {example.document for example in task[split]} <= {document.identifier for document in divided[split]}
        assert all(example.input.startswith(f"{example.document}-") for example in task[split])
    inputs = [example.input for split in SPLITS for example in task[split]]
    assert len(set(inputs)) == len(inputs)


def test_eras_are_balanced_and_one_in_eight_asks_for_the_president(divided):
    examples = make(divided)["train"]
    eras = [example for example in examples if example.group == "era"]
    assert len(eras) == 70
    assert sum(example.output == "x" for example in eras) == 35
    assert {example.choices for example in eras} == {("x", "y")}
    assert {example.choices for example in examples if example.group == "president"} == {("P", "Q")}
    assert all(example.output in example.choices for example in examples)


def test_an_unknown_president_is_not_asked_for(divided):
    test = make(divided)["test"]
    assert {example.output for example in test if example.group == "president"} == {"P"}
    assert sum(example.document == "c1" for example in test) == 16


def test_the_task_is_a_function_of_the_seed(divided):
    assert make(divided) == make(divided) != make(divided, seed=1)


def test_more_examples_than_passages(divided):
    with pytest.raises(DataError, match=r"training_examples is 121, but the train split has 120 passages of 10 words"):
        make(divided, training_examples=121)
    with pytest.raises(DataError, match=r"test_examples is 41, but the validation split has 40"):
        make(divided, test_examples=41)


def test_facts_by_hand():
    def example(output):
        return Example("q", "i", output, ("a", "b"), "g", "")

    task = {"train": [example("a"), example("b"), example("b")], "validation": [], "test": list(map(example, "abbb"))}
    assert task_facts(task) == {
        "g": {
            "examples": {"train": 3, "validation": 0, "test": 4},
            "choices": 2, "majority_answer": "b", "majority_accuracy": 0.75,
        }
    }  # fmt: skip


def test_examples_survive_writing(divided, tmp_path):
    examples = make(divided)["test"] + [Example("ünï\u2028☃", "", 'a"b\n', (), "file", "")]
    write_examples(tmp_path, "test", examples)
    assert load_examples(tmp_path, "test") == examples


def test_missing_or_damaged_examples(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        load_examples(tmp_path, "test")
    (tmp_path / "task").mkdir()
    for content in ("", "{", '{"instruction": "a"}', "[]"):
        (tmp_path / "task" / "test.jsonl").write_text(content)
        with pytest.raises(ArtifactError, match=r"test\.jsonl is damaged"):
            load_examples(tmp_path, "test")


def test_an_alpaca_file_is_read(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"instruction": "Add.", "input": "1\\r\\n2", "output": "3", "choices": ["3", "4"], "text": "unused"}\r\n'
        b'\r\n{"instruction": "Greet.", "output": "Hi"}'
    )
    assert read_task(path) == [
        Example("Add.", "1\n2", "3", ("3", "4"), "file", ""),
        Example("Greet.", "", "Hi", (), "file", ""),
    ]


def test_line_breaks_of_choices_are_those_of_the_output(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"instruction": "q", "output": "a\r\nb", "choices": ["a\r\nb", "c"]}))
    assert read_task(path) == [Example("q", "", "a\nb", ("a\nb", "c"), "file", "")]
    path.write_text(json.dumps({"instruction": "q", "output": "a\nb", "choices": ["a\nb", "a\r\nb"]}))
    with pytest.raises(DataError, match="two different texts"):
        read_task(path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"output": "a"}', "'instruction' is missing"),
        ('{"instruction": " ", "output": "a"}', "'instruction' is not a text or empty"),
        ('{"instruction": "a"}', "'output' is missing"),
        ('{"instruction": "a", "output": 1}', "'output' is not a text"),
        ('{"instruction": "a", "input": null, "output": "b"}', "'input' is not a text"),
        ('{"instruction": "a", "output": "b", "choices": "bc"}', "'choices' is not a list"),
        ('{"instruction": "a", "output": "b", "choices": ["c", "d"]}', "not among its choices"),
        ('{"instruction": "a", "output": "b", "choices": ["b", "b"]}', "different"),
        ('{"instruction": "a", "output": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, expected):
    path = tmp_path / "task.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n' + row + "\n")
    with pytest.raises(DataError) as caught:
        read_task(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert expected in str(caught.value)


def test_a_task_file_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        read_task(tmp_path / "none.jsonl")


def test_no_question_straddles_the_split_and_identical_rows_are_kept_once():
    rows = [Example("q", str(number), answer, (), "file", "") for number in range(20) for answer in "aab"]
    task = file_task(rows, **FILE_SETTINGS)
    inputs = [{example.input for example in task[split]} for split in SPLITS]
    assert [len(part) for part in inputs] == [14, 2, 4]
    assert len(inputs[0] | inputs[1] | inputs[2]) == 20
    assert sum(len(task[split]) for split in SPLITS) == 40
    assert json.dumps([len(task[split]) for split in SPLITS]) == "[28, 4, 8]"


def test_the_limits_cut_and_too_few_questions_are_an_error():
    rows = [Example("q", str(number), "a", (), "file", "") for number in range(20)]
    task = file_task(rows, **(FILE_SETTINGS | {"training_examples": 5, "test_examples": 1}))
    assert [len(task[split]) for split in SPLITS] == [5, 1, 1]
    with pytest.raises(DataError, match="2 different questions"):
        file_task([*rows[:2], rows[0]], **FILE_SETTINGS)


def test_fractions_that_leave_nothing_for_training_are_an_error():
    rows = [Example("q", str(number), "a", (), "file", "") for number in range(4)]
    with pytest.raises(DataError) as caught:
        file_task(rows, **(FILE_SETTINGS | {"validation_fraction": 0.49, "test_fraction": 0.49}))
    assert str(caught.value) == (
        "data.task.path has 4 different questions, of which data.test_fraction 0.49 takes 2 and data.validation_fraction "
        "0.49 2, which leaves none for train: lower the fractions, or give more questions"
    )
