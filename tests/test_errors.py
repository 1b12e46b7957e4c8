"""How errors of other libraries stand in ours."""

import pytest
from ruamel.yaml import YAML, YAMLError

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


def test_of_a_yaml_error_the_problem_alone() -> None:
    with pytest.raises(YAMLError) as raised:
        YAML(typ="safe", pure=True).load("a: [")
    assert "\n" in str(raised.value)
    assert first_line(raised.value) == "expected the node content, but found '<stream end>'"
