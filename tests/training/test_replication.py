"""Replicas: which checkpoint of an interrupted one is gone on from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficientllm import paths, replication
from efficientllm.bases.base import base_folder
from efficientllm.config import load
from efficientllm.data.manifest import MANIFEST_FILE
from efficientllm.errors import CellFailure
from efficientllm.files import write_bytes
from efficientllm.models.weights import WEIGHTS_FILE

ROOT = Path(__file__).parents[2]


class Interrupted:
    """A trainer that only notes under which name its checkpoints are kept."""

    settings = SimpleNamespace(model_dump=dict)
    task = SimpleNamespace(learning_rate=1e-3)
    fingerprint = ""

    def prepare(self) -> None: ...

    def run(self, *, fingerprint: str, **others: Any) -> None:
        del others
        self.fingerprint = fingerprint
        raise CellFailure("interrupted")


def identity(axis: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> str:
    configuration, trainer = load(ROOT), Interrupted()
    monkeypatch.setattr(replication, "check_directory", lambda _: None)
    monkeypatch.setattr(replication, "prepare_model", lambda *_: SimpleNamespace(decoder=None))
    monkeypatch.setattr(replication, "tuning_trainer", lambda *_: trainer)
    monkeypatch.setattr(replication, "pretraining_config", lambda *_: SimpleNamespace(to_dict=lambda: {"layers": 2}))
    monkeypatch.setattr(replication, "build_decoder", lambda *_, **__: None)
    monkeypatch.setattr(replication, "pretraining_trainer", lambda *_: trainer)
    with pytest.raises(CellFailure, match="interrupted"):
        replication._quality(configuration, axis, cell, 1, torch.device("cpu"))  # type: ignore[arg-type]
    return trainer.fingerprint


@pytest.mark.parametrize(
    ("axis", "cell", "changed"),
    [
        ("tune", "lora-small", base_folder("small") / WEIGHTS_FILE),
        ("tune", "lora-small", paths.DATA / MANIFEST_FILE),
        ("pretrain", "mqa", paths.DATA / MANIFEST_FILE),
    ],
)
def test_a_replica_of_another_base_or_other_data_starts_anew(
    axis: str, cell: str, changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (base_folder("small") / WEIGHTS_FILE, paths.DATA / MANIFEST_FILE):
        path.parent.mkdir(parents=True)
        write_bytes(path, b"first")
    before = identity(axis, cell, monkeypatch)
    assert identity(axis, cell, monkeypatch) == before
    write_bytes(changed, b"second")
    assert identity(axis, cell, monkeypatch) != before
