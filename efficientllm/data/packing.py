"""Packed token files, read as memory maps, and the windows that training and evaluation take from them."""

from pathlib import Path

import numpy as np

from efficientllm.data.order import batch_positions
from efficientllm.errors import ArtifactError, DataError
from efficientllm.files import MISSING_REMEDY, UNREADABLE_REMEDY

IGNORED = -100


def split_path(folder: Path, name: str) -> Path:
    """The file of a split's tokens."""
    return folder / f"{name}.npy"


def write_split(folder: Path, name: str, tokens: np.ndarray) -> None:
    """Writes the tokens of a split as `<name>.npy`.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    path = split_path(folder, name)
    try:
        np.save(path, tokens, allow_pickle=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or f'no room on the disk ({error})'}") from error


def open_split(folder: Path, name: str) -> np.ndarray:
    """Opens the tokens of a split as a read-only memory map.

    Args:
        folder: Folder that `prepare` wrote.
        name: `train`, `validation` or `test`.

    Returns:
        Token ids `[tokens]`, uint16 or uint32.

    Raises:
        ArtifactError: The file is missing, truncated, or no array of tokens.
    """
    path = split_path(folder, name)
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: {MISSING_REMEDY}") from error
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is truncated or damaged ({error}): {UNREADABLE_REMEDY}") from error
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise ArtifactError(
            f"{path} holds {tokens.dtype} {list(tokens.shape)} instead of tokens: run `dvc repro` again"
        )
    return np.asarray(tokens) if tokens.size == 0 else tokens


def window_count(tokens: int, sequence_length: int) -> int:
    """Number of whole windows of `sequence_length` inputs; the last target needs one token more."""
    return max(0, (tokens - 1) // sequence_length)


def check_size(tokens: int, *, sequence_length: int, batch_size: int) -> None:
    """Checks that the training split fills one batch with different windows.

    Raises:
        DataError: It does not; the message names the numbers and the parameters to change.
    """
    windows = window_count(tokens, sequence_length)
    if windows < batch_size:
        raise DataError(
            f"the training split has {tokens} tokens, which is {windows} windows of {sequence_length}, fewer than "
            f"a batch of {batch_size}: lower pretrain.training.batch_size or pretrain.training.sequence_length, or give more text"
        )


def training_batch(tokens: np.ndarray, *, seed: int, step: int, batch_size: int, sequence_length: int) -> np.ndarray:
    """Returns a batch as a pure function of the seed and the step, so that resuming needs no state.

    The split is cut into windows whose inputs do not overlap. Each epoch visits every window once, in an order drawn
    from (seed, epoch); a batch that reaches past an epoch's end goes on in the next one.

    Args:
        tokens: Tokens of the training split.
        seed: Seed of the order.
        step: Index of the batch, from 0.
        batch_size: Windows in a batch, B.
        sequence_length: Inputs in a window, T.

    Returns:
        int64 `[B, T + 1]`: inputs are `[:, :-1]`, targets are `[:, 1:]`.

    Raises:
        DataError: The split is too small for one batch.
    """
    check_size(len(tokens), sequence_length=sequence_length, batch_size=batch_size)
    count = window_count(len(tokens), sequence_length)
    starts = np.array(batch_positions(count, batch_size, step, seed), np.int64) * sequence_length
    return np.asarray(tokens[starts[:, None] + np.arange(sequence_length + 1)], np.int64)


def evaluation_windows(tokens: np.ndarray, sequence_length: int) -> np.ndarray:
    """Cuts a split into windows in which every token but the split's first is a target exactly once.

    Args:
        tokens: Tokens of the split.
        sequence_length: Inputs in a window, T.

    Returns:
        int64 `[N, T + 1]`: inputs are `[:, :-1]`, targets are `[:, 1:]`; a shorter last window is filled with -100.

    Raises:
        DataError: The split has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise DataError(f"the split has {len(tokens)} tokens: nothing can be predicted; give more text")
    count = -(-(len(tokens) - 1) // sequence_length)
    padded = np.full(count * sequence_length + 1, IGNORED, np.int64)
    padded[: len(tokens)] = tokens
    return np.stack([padded[start * sequence_length : (start + 1) * sequence_length + 1] for start in range(count)])
