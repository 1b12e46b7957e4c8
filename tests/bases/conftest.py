"""A run to make bases in."""

import json
import shutil
from pathlib import Path

import pytest
from base_sources import TEXT, configuration

from efficientllm import paths
from efficientllm.data.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with prepared data: the smoke profile on four small documents."""
    from ruamel.yaml import YAML

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    yaml = YAML(typ="safe")
    profile = yaml.load((ROOT / "profiles" / "smoke.yaml").read_text())
    documents = [f"Document {n}. " + TEXT * 60 for n in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    questions = [
        {"instruction": "Add.", "input": f"{n}+1", "output": str(n + 1), "choices": [str(n + 1), str(n)]}
        for n in range(12)
    ]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, questions)))
    profile["data"] |= {
        "source": "files",
        "files": {"paths": ["corpus.jsonl"], "text_field": "text", "licence": "CC0"},
        "tokenizer": {"train_vocabulary_size": 270, "path": None},
        "task": profile["data"]["task"] | {"source": "file", "path": "task.jsonl"},
    }
    (tmp_path / "profiles").mkdir()
    with (tmp_path / "profiles" / "smoke.yaml").open("w") as stream:
        yaml.dump(profile, stream)
    prepare(configuration("artifacts/pretrain/dense_small"), paths.DATA)
    return tmp_path
