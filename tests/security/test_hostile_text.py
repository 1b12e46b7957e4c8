"""Texts that a user's files bring in stay texts, from the file to the page."""

import json
import sys
from pathlib import Path

import pytest

from efficientllm import config, paths
from efficientllm.data.prepare import prepare
from efficientllm.reporting.evidence import collect
from efficientllm.reporting.page import render

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("bad_input", "reporting")]
from cases import SENTENCE, edit  # noqa: E402 - lies beside the tests of bad input
from factories import failed, make_run, write_results  # noqa: E402 - lies beside the tests of the report

MARK = "<img src=x onerror=alert(1)>"


def test_from_the_corpus_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, lambda record: failed(record, f"no {MARK}") if record.cell == "mqa" else record)
    profile = tmp_path / paths.PROFILES / "cpu.yaml"
    name = f"{MARK.replace('/', '')}.jsonl"
    documents = [{"text": f"Document {number} {MARK}. " + SENTENCE * 60} for number in range(4)]
    (tmp_path / name).write_text("\n".join(json.dumps(document) for document in documents))
    rows = [
        {"instruction": MARK, "input": f"{number} </script>", "output": MARK, "choices": [MARK, "</title>"]}
        for number in range(12)
    ]
    (tmp_path / "task.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    edit(profile, "data/source", "files")
    edit(profile, "data/files", {"paths": [name], "text_field": "text", "licence": f"{MARK}</script>"})
    edit(profile, "data/task/source", "file")
    edit(profile, "data/task/path", "task.jsonl")
    edit(profile, "data/tokenizer/train_vocabulary_size", 270)
    configuration = config.load()
    prepare(configuration, paths.DATA)
    write_results(tmp_path)
    page = render(collect(configuration))
    assert "&lt;img src=x" in page, "the licence is on the page"
    assert "<img src=x" not in page
    assert page.count("</title>") - page.count("<title") == 0
    assert page.count("</script>") == page.count("<script")
