"""How errors of other libraries stand in ours."""

import pytest

from efficientllm.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("out of memory", "out of memory"),
        ("\n  CUDA error: out of memory  \nCompile with `TORCH_USE_CUDA_DSA`", "CUDA error: out of memory"),
        ("", "RuntimeError"),
        (" \n\t\n", "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something_or_the_kind(message: str, line: str) -> None:
    assert first_line(RuntimeError(message)) == line
