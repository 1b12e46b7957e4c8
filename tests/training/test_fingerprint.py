"""What makes a training run another one."""

import shutil
from pathlib import Path

import pytest

import efficientllm
from efficientllm.training.fingerprint import code_hash, fingerprint


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        ("components/mixers/gqa.py", True), ("distributed/world.py", True), ("models/norms.py", True),
        ("training/trainer.py", True), ("tuning/methods/dora.py", True), ("reporting/page.py", False),
    ],
)  # fmt: skip
def test_a_checkpoint_is_not_resumed_by_other_code(source: str, counts: bool, tmp_path: Path) -> None:
    package = Path(shutil.copytree(Path(efficientllm.__file__).parent, tmp_path / "edited"))
    assert code_hash(package) == code_hash()
    with (package / source).open("a", encoding="utf-8") as stream:
        stream.write("# edited\n")
    code_hash.cache_clear()
    assert (code_hash(package) != code_hash()) == counts


def test_inputs_are_part_of_the_identity() -> None:
    assert fingerprint(seed=0) == fingerprint(seed=0) != fingerprint(seed=1)
