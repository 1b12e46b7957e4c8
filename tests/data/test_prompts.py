import numpy as np
import pytest

from efficientllm.data.prompts import (
    EncodedExample,
    _encode,
    collate,
    encode_questions,
    encode_split,
    few_widths,
)
from efficientllm.data.tasks import Example, write_examples
from efficientllm.data.tokenizer import save_tokenizer, train_tokenizer
from efficientllm.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    # no merges at all: one token a byte, so that lengths can be counted by hand
    return train_tokenizer(["ab"], 257)


EXAMPLE = Example("Era?", "abcdef", "17", ("17", "180"), "era", "d")


def encode_example(tokenizer, example, maximum_length):
    return _encode(tokenizer, [example], maximum_length, "the example")[0]


def test_the_template_by_hand(tokenizer):
    encoded = encode_example(tokenizer, EXAMPLE, 100)
    assert tokenizer.decode(encoded.token_ids) == "abcdef\nEra? 17"
    assert encoded.token_ids[-1] == tokenizer.end_token_id
    assert tokenizer.decode(encoded.token_ids[: encoded.prompt_length]) == "abcdef\nEra?"


def test_without_input_the_instruction_is_the_prompt(tokenizer):
    encoded = encode_example(tokenizer, Example("Greet.", "", "Hi ☃", (), "file", ""), 100)
    assert tokenizer.decode(encoded.token_ids) == "Greet. Hi ☃"


def test_the_input_is_cut_and_never_the_answer(tokenizer):
    # "\nEra?" is 5 tokens, " 17" and the end 4: 3 of 12 are left for the input
    encoded = encode_example(tokenizer, EXAMPLE, 12)
    assert len(encoded.token_ids) == 12
    assert tokenizer.decode(encoded.token_ids) == "abc\nEra? 17"
    assert tokenizer.decode(encode_example(tokenizer, EXAMPLE, 9).token_ids) == "\nEra? 17"
    with pytest.raises(DataError, match=r"instruction \(5 tokens\) and answer \(4\).*8 tokens.*sequence_length"):
        encode_example(tokenizer, EXAMPLE, 8)


def test_padding_and_masks_by_hand():
    inputs, labels = collate([EncodedExample([5, 6, 7, 0], 2), EncodedExample([8, 0], 1)], pad_id=9)
    np.testing.assert_array_equal(inputs, [[5, 6, 7, 0], [8, 0, 9, 9]])
    np.testing.assert_array_equal(labels, [[-100, -100, 7, 0], [-100, 0, -100, -100]])
    assert inputs.dtype == labels.dtype == np.int64


def test_few_widths_for_programs_that_are_compiled_for_each():
    lengths = [3, 9, 22, 25, 40]
    widths = few_widths(lengths * 300)
    assert widths == [10, 30, 40], "no batch would be of 20"
    found = [collate([EncodedExample([1] * length, 1)], widths=widths)[0].shape[1] for length in lengths]
    assert found == [10, 10, 30, 30, 40]
    assert few_widths(lengths * 20) == [40], "compiling would take longer than what is saved"
    assert few_widths([*[25] * 399, *[40] * 700]) == [40], "99.75 steps saved"
    assert few_widths([*[25] * 400, *[40] * 700]) == [30, 40]
    assert few_widths([*[9] * 100, *[19] * 150, *[40] * 700]) == [20, 40], "a width that is left out goes to the next"
    assert few_widths([40] * 500) == [40]
    inputs, labels = collate([EncodedExample([5, 6, 7], 2)], pad_id=9, widths=[2, 5])
    np.testing.assert_array_equal(inputs, [[5, 6, 7, 9, 9]])
    np.testing.assert_array_equal(labels, [[-100, -100, 7, -100, -100]])


def test_a_split_is_encoded_as_each_of_its_examples(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    examples = [EXAMPLE, Example("Greet.", "", "Hi", (), "file", "")]
    write_examples(tmp_path, "train", examples)
    assert encode_split(tmp_path, "train", 12) == [encode_example(tokenizer, example, 12) for example in examples]
    write_examples(tmp_path, "train", [examples[1], Example("Greet.", "", "x" * 20, (), "file", "")])
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: "):
        encode_split(tmp_path, "train", 12)


def test_questions_share_one_prompt_that_fits_the_longest_candidate(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    write_examples(tmp_path, "test", [Example("Greet.", "", "Hi", (), "file", ""), EXAMPLE])
    free, question = encode_questions(tmp_path, "test", 12)
    assert [tokenizer.decode(answer) for answer in free.answers] == [" Hi"]
    assert free.correct == 0
    assert tokenizer.decode(question.prompt) == "ab\nEra?"
    assert [tokenizer.decode(answer) for answer in question.answers] == [" 17", " 180"]
    assert all(answer[-1] == tokenizer.end_token_id for answer in question.answers)
    assert (question.correct, question.group) == (0, "era")
    # the reference answer is scored as it was trained
    assert encode_example(tokenizer, EXAMPLE, 100).token_ids[-4:] == question.answers[0]
