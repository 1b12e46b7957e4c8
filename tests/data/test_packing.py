import numpy as np
import pytest

from efficientllm.data.packing import (
    IGNORED,
    check_size,
    evaluation_windows,
    open_split,
    training_batch,
    write_split,
)
from efficientllm.errors import ArtifactError, DataError

SHAPE = {"batch_size": 4, "sequence_length": 5}


def test_written_tokens_are_read_as_a_memory_map(tmp_path):
    tokens = np.arange(100, dtype=np.uint16)
    write_split(tmp_path, "train", tokens)
    opened = open_split(tmp_path, "train")
    assert isinstance(opened, np.memmap)
    np.testing.assert_array_equal(opened, tokens)


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(ArtifactError, match=r"train\.npy is missing"):
        open_split(tmp_path, "train")
    write_split(tmp_path, "train", np.arange(100, dtype=np.uint16))
    path = tmp_path / "train.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"train\.npy is truncated"):
        open_split(tmp_path, "train")
    for content in (b"", b"not numpy at all"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"train\.npy is truncated or damaged"):
            open_split(tmp_path, "train")
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(ArtifactError, match="instead of tokens"):
        open_split(tmp_path, "train")
    np.save(path, np.array(["a", {}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="damaged"):
        open_split(tmp_path, "train")


def test_a_batch_is_a_pure_function_of_seed_and_step():
    tokens = np.arange(101, dtype=np.uint16)
    batch = training_batch(tokens, seed=1, step=7, **SHAPE)
    training_batch(tokens, seed=1, step=0, **SHAPE)
    np.testing.assert_array_equal(training_batch(tokens, seed=1, step=7, **SHAPE), batch)
    assert batch.dtype == np.int64 and batch.shape == (4, 6)
    assert not np.array_equal(training_batch(tokens, seed=2, step=7, **SHAPE), batch)


def test_targets_are_the_next_tokens():
    batch = training_batch(np.arange(101, dtype=np.uint16), seed=0, step=0, **SHAPE)
    np.testing.assert_array_equal(np.diff(batch, axis=1), 1)
    np.testing.assert_array_equal(batch[:, 0] % 5, 0)


def test_every_window_once_per_epoch_in_another_order():
    # 18 windows and batches of 4: epochs end in the middle of batches
    tokens = np.arange(18 * 5 + 3, dtype=np.uint16)
    firsts = np.concatenate([training_batch(tokens, seed=0, step=step, **SHAPE)[:, 0] for step in range(9)])
    for epoch in (firsts[:18], firsts[18:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(0, 90, 5))
    assert not np.array_equal(firsts[:18], firsts[18:])


def test_a_corpus_too_small_for_a_batch():
    # 4 windows of 5 need 21 tokens: the last target is the token behind the last window
    check_size(21, **SHAPE)
    with pytest.raises(DataError, match=r"20 tokens.*3 windows of 5.*batch of 4.*pretrain\.training\.batch_size"):
        check_size(20, **SHAPE)
    with pytest.raises(DataError):
        training_batch(np.arange(20, dtype=np.uint16), seed=0, step=0, **SHAPE)


@pytest.mark.parametrize("length", [2, 5, 6, 7, 11, 12, 101])
def test_evaluation_predicts_every_token_but_the_first_once(length):
    tokens = np.arange(1000, 1000 + length, dtype=np.uint16)
    windows = evaluation_windows(tokens, 5)
    assert windows.dtype == np.int64 and windows.shape[1] == 6
    targets = windows[:, 1:]
    np.testing.assert_array_equal(targets[targets != IGNORED], tokens[1:])
    inputs = windows[:, :-1][targets != IGNORED]
    np.testing.assert_array_equal(inputs, tokens[:-1])


def test_evaluation_of_nothing():
    with pytest.raises(DataError, match="1 tokens"):
        evaluation_windows(np.zeros(1, np.uint16), 5)
