"""The corpus script: readers of each format on small made-up inputs, cleaning, manifest, resuming, what is missing."""

import gzip
import importlib
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SENTENCE = (
    "The quick fox of the north is not afraid of the dog that lies in the sun, and it has said so to all of them."
)


@pytest.fixture(scope="module", autouse=True)
def _on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def part(name: str) -> Any:
    return importlib.import_module(f"corpus.{name}")


def prose(characters: int, mark: str = "") -> list[str]:
    return [f"{SENTENCE} {mark} {number}" for number in range(characters // len(SENTENCE) + 1)]


# --- formats -------------------------------------------------------------------------------------------------------


def test_html_keeps_sentences_of_the_main_part_only() -> None:
    page = part("markup").read_html(
        """<html><head><title>3.1. Queues &mdash; Manual 2.0</title><script>var a = "the script is not text";</script></head><body>
        <div>The text outside of the main part is left out of it.</div>
        <div role="main"><div class="related">This is the navigation of all the pages.</div>
        <h1>3.1. Queues<a class="headerlink" href="#x">¶</a></h1>
        <p>A <em>queue</em> keeps
           the order of its &lt;items&gt;.
        <p>For example, this is how it is made:
        <pre>q = Queue() # this is the listing that is not kept</pre>
        <dl><dt class="sig">get(self, block, the_timeout) of the class</dt><dd>Returns the oldest item of the queue.</dd></dl>
        <ul><li>See also</li><li>It is empty when there is no item in it.</li></ul>
        <table><tr><td>0x1f</td><td>The code of the error that is raised.</td></tr></table>
        </div></body></html>"""
    )
    assert page.title == "Queues"
    assert page.paragraphs == [
        "## Queues",
        "A queue keeps the order of its <items>.",
        "Returns the oldest item of the queue.",
        "It is empty when there is no item in it.",
        "The code of the error that is raised.",
    ]


def test_html_without_a_marked_part_is_read_from_its_body() -> None:
    page = part("markup").read_html(
        "<title>T</title><body><div class=navheader>Go to the next page of it</div><p>This is all of the text."
    )
    assert page.paragraphs == ["This is all of the text."]


def test_html_folder_leaves_indices_out_and_reads_linked_files_once(tmp_path: Path) -> None:
    (tmp_path / "doc" / "old").mkdir(parents=True)
    for name in ("a", "genindex", "old/b"):
        (tmp_path / "doc" / f"{name}.html").write_bytes(f"<title>{name}</title><p>This is “the” text of it.".encode())
    (tmp_path / "doc" / "link.html").symlink_to("a.html")
    pages = part("markup").html_reader("doc/**/*.html", without=("*/old/*",))(tmp_path)
    assert [page.paragraphs for page in pages] == [["This is “the” text of it."]]


def test_gutenberg_frame_is_stripped_and_chapters_are_pages() -> None:
    readers = part("readers")
    text = (
        "The Project Gutenberg EBook\nlicence\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nPreface.\n\nCHAPTER I. Loomings\n\n"
        "It was the _best_ of times, and the lines of the paragraph are hard-wrapped at\nsome seventy characters.\n\n"
        "CHAPTER II\n\nOf man's first disobedience\nAnd the fruit\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nmore licence\n"
    )
    pages = list(readers.read_book(readers.without_gutenberg(text), "X"))
    assert [page.title for page in pages] == ["X", "X, Chapter i. loomings", "X, Chapter ii"]
    assert pages[0].paragraphs == ["Preface."]
    assert pages[1].paragraphs[1] == (
        "It was the best of times, and the lines of the paragraph are hard-wrapped at some seventy characters."
    )
    assert pages[2].paragraphs[1] == "Of man's first disobedience\nAnd the fruit", "verse keeps its lines"


def test_text_without_gutenbergs_frame_stays_whole() -> None:
    assert part("readers").without_gutenberg("HAMLET\n\nWho's there?") == "HAMLET\n\nWho's there?\n"


def test_sword_module(tmp_path: Path) -> None:
    blocks = [
        '<milestone type="x-importer"/>',
        '<title type="x-s">Psalms</title><chapter n="1" osisID="Ps.1" sID="Ps.1"/><div sID="a" type="x-p"/><w lemma="strong:H1">Blessed</w>\n'
        '<note>1:1 a footnote</note>, he <hi type="italic">said</hi> &amp; <w>went</w><note>x</note><w>on</w>.<div eID="a" type="x-p"/>'
        "<lg><l>First line</l><l>second line</l></lg><table><row><cell>Outline</cell></row></table>"
        '<chapter eID="Ps.1"/><chapter n="2" osisID="Ps.2" sID="Ps.2"/><div sID="b" type="x-p"/>Why?<div eID="b" type="x-p"/>',
    ]
    packed = [zlib.compress(block.encode()) for block in blocks]
    folder = tmp_path / "usr/share/sword/modules/comments/zcom/x"
    folder.mkdir(parents=True)
    index = b"".join(
        struct.pack("<III", sum(map(len, packed[:number])), len(packed[number]), len(block))
        for number, block in enumerate(blocks)
    )
    (folder / "ot.czs").write_bytes(index)
    (folder / "ot.czz").write_bytes(b"".join(packed))
    pages = [page for page in part("readers").read_sword(tmp_path) if page.paragraphs]
    assert [page.paragraphs for page in pages] == [
        ["## Psalms"], ["Blessed, he said & went on.", "First line\nsecond line"], ["Why?"],
    ]  # fmt: skip
    assert [page.title for page in pages[1:]] == ["Ps 1", "Ps 2"]


def r_record(*vectors: list[str | None]) -> bytes:
    content = b"X\n\x00\x00\x00\x03"
    for vector in vectors:
        content += b"\x00\x00\x00\x10" + struct.pack(">I", len(vector))
        for string in vector:
            encoded = b"" if string is None else string.encode()
            content += b"\x00\x04\x00\x09" + struct.pack(">i", -1 if string is None else len(encoded)) + encoded
    return struct.pack(">I", len(content)) + zlib.compress(content)


def test_r_strings_of_every_record() -> None:
    database = r_record(["SENSE", "", "Élinor —", None]) + r_record(["one"], ["a", "b"])
    assert list(part("readers").r_strings(database)) == [["SENSE", "", "Élinor —", ""], ["one"], ["a", "b"]]


def test_wordnet_lines_become_sentences(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(
        "  1 This software and database is licensed\n"
        "00000001 05 n 01 animal 0 000 | a living thing  \n"
        '00000002 05 n 02 dog 0 domestic_dog 0 001 @ 00000001 n 0000 | a member of the `genus\'; barks; "the dog barked"; "is it a dog?"  \n'
        "00000003 18 n 01 Fido 0 001 @i 00000002 n 0000 | a dog  \n"
    )
    (folder / "data.verb").write_text("00000004 29 v 01 breathe 0 000 01 + 02 00 | draw air\n")
    (folder / "data.adj").write_text('00000005 00 s 01 able(p) 0 000 | "only an example"\n')
    (folder / "data.adv").write_text("")
    pages = list(part("readers").read_wordnet(tmp_path))
    assert [page.title for page in pages] == [
        "WordNet, noun 05",
        "WordNet, noun 18",
        "WordNet, verb 29",
        "WordNet, adj 00",
    ]
    assert [sentence for page in pages for sentence in page.paragraphs] == [
        "Animal: a living thing.",
        "Dog or domestic dog: a member of the 'genus'; barks. A kind of animal. “The dog barked.” “Is it a dog?”",
        "Fido: a dog. An instance of dog.",
        "To breathe: draw air.",
        "Able. “Only an example.”",
    ]


def test_jargon_file_without_contents_and_boxes(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/doc/jargon-text"
    folder.mkdir(parents=True)
    lines = "\n   ".join([SENTENCE] * 4)
    text = f"   The Jargon File\n\n   1. Slang\n\n   {lines}\n\n┌──┐\n│a │\n└──┘\n\n   :hack: n.\n\n   The end of it."
    (folder / "jargon.txt.gz").write_bytes(gzip.compress(text.encode()))
    (page,) = part("readers").read_jargon(tmp_path)
    assert page.paragraphs == [" ".join([SENTENCE] * 4), ":hack: n.", "The end of it."]


# --- cleaning ------------------------------------------------------------------------------------------------------


def test_repeated_paragraphs_go_and_so_do_headings_left_bare() -> None:
    model, cleaning = part("model"), part("cleaning")
    pages = [
        model.Page("a", ["## Copyright", "All of it is free.", "## Text", "One is here."]),
        model.Page("b", ["## Copyright", "ALL of it, is free!", "## Text", "Two are here.", "## End"]),
    ]
    kept = [page.paragraphs for page in cleaning.without_repetitions(pages, 1)]
    assert kept == [pages[0].paragraphs, ["## Text", "Two are here."]]
    dialogue = [model.Page("c", ["Yes.", "Yes.", SENTENCE, SENTENCE])]
    assert [page.paragraphs for page in cleaning.without_repetitions(dialogue, 80)] == [["Yes.", "Yes.", SENTENCE]]


def test_documents_are_neither_tiny_nor_huge_and_in_english() -> None:
    model, cleaning = part("model"), part("cleaning")
    small = [model.Page(f"small {number}", prose(1_500, f"s{number}")) for number in range(5)]
    huge = [model.Page("huge", prose(cleaning.LARGEST_DOCUMENT * 2, "h"))]
    german = [
        model.Page("german", ["Der schnelle Fuchs springt wieder und wieder über den faulen Hund hinweg. " * 100])
    ]
    found = list(cleaning.documents(small + huge + german + [model.Page("rest", ["The end of it is here."])]))
    sizes = [len(cleaning.text_of(page)) for page in found]
    assert all(cleaning.SMALLEST_DOCUMENT <= size <= cleaning.LARGEST_DOCUMENT * 1.1 for size in sizes)
    text = "".join(map(cleaning.text_of, found))
    assert [page.title for page in found if "huge" not in page.title][:1] == ["small 0"]
    assert all(paragraph in text for page in small + huge for paragraph in page.paragraphs)
    assert "Fuchs" not in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Returns the number of items in the queue.", True),
        ("def get(self, block=True, timeout=None) -> Item", False),
        ("Index Modules Next Previous Up", False),
        ("--verbose -v | 0x7f {a: 1} for the [b]", False),
        ("See also", False),
    ],
)
def test_manual_prose(text: str, kept: bool) -> None:
    assert part("cleaning").is_manual_prose(text) is kept


# --- packages, manifest, resuming ----------------------------------------------------------------------------------


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A source whose package is made up in place of a download."""
    model, building = part("model"), part("building")

    def obtain(package: Any, folder: Path) -> Any:
        (folder / "LICENSE").write_text("Permission is\n  hereby granted")
        (folder / "text").write_text("\n\n".join(prose(9_000)))
        return part("packages").Obtained(package.name, "1.2")

    def read(folder: Path) -> Iterator[Any]:
        yield model.Page("T", part("cleaning").paragraphs_of((folder / "text").read_text()))

    monkeypatch.setattr(building, "obtain", obtain)
    return model.Source(
        "fox", "Foxes", "MIT", "permission is hereby", (model.Package("npm", "fox", "1.2", "LICENSE"),), read
    )


def test_build_writes_documents_and_a_manifest(source: Any, tmp_path: Path) -> None:
    building = part("building")
    entry = building.build(source, tmp_path / "corpus")
    lines = [json.loads(line) for line in (tmp_path / "corpus" / "fox.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"text", "title", "source", "licence"}]
    assert (entry["documents"], entry["characters"]) == (1, len(lines[0]["text"]))
    assert entry["packages"] == [{"registry": "npm", "name": "fox", "version": "1.2"}]
    assert building.read_manifest(tmp_path / "corpus")["fox"] == entry
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["fox.jsonl", "manifest.json"]
    estimated = building.estimate_tokens(tmp_path / "corpus")["fox"]["estimated_tokens"]
    assert 0 < estimated < entry["characters"]
    assert json.loads((tmp_path / "corpus" / "manifest.json").read_text())["estimated_tokens"] == estimated


def test_another_licence_in_the_package_is_refused(source: Any, tmp_path: Path) -> None:
    import dataclasses

    changed = dataclasses.replace(source, evidence="public domain")
    with pytest.raises(part("model").SourceError, match="LICENSE does not state the licence"):
        part("building").build(changed, tmp_path)
    assert not (tmp_path / "fox.jsonl").exists()


def test_damaged_or_empty_packages_are_named(source: Any, tmp_path: Path) -> None:
    import dataclasses

    def damaged(folder: Path) -> Iterator[Any]:
        yield part("model").Page("", [zlib.decompress(b"no stream").decode()])

    for read, message in ((damaged, "not as this script knows them"), (lambda folder: iter(()), "no text")):
        with pytest.raises(part("model").SourceError, match=message):
            part("building").build(dataclasses.replace(source, read=read), tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, sources: tuple[Any, ...], *arguments: str) -> int:
    monkeypatch.setattr(part("command"), "SOURCES", sources)
    return int(part("command").main(list(arguments)))


def test_finished_sources_are_kept_and_changed_files_made_again(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--destination", str(tmp_path))
    assert run(monkeypatch, (source,), *arguments) == 0
    assert "about" in capsys.readouterr().out
    before = (tmp_path / "fox.jsonl").stat().st_mtime_ns
    assert run(monkeypatch, (source,), *arguments) == 0
    assert "finished before" in capsys.readouterr().out
    assert (tmp_path / "fox.jsonl").stat().st_mtime_ns == before
    (tmp_path / "fox.jsonl").write_text("cut")
    assert run(monkeypatch, (source,), *arguments) == 0
    assert (tmp_path / "fox.jsonl").stat().st_size > 3


def test_a_missing_tool_is_told_and_the_rest_is_made(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    packages, building = part("packages"), part("building")
    made_up = building.obtain
    monkeypatch.setattr(
        building,
        "obtain",
        lambda package, folder: (made_up if package.registry == "npm" else packages.obtain)(package, folder),
    )
    monkeypatch.setattr(packages.shutil, "which", lambda tool: None)
    manual = dataclasses.replace(source, name="manual", packages=(part("model").Package("debian", "x-doc"),))
    arguments = ("--destination", str(tmp_path))
    assert run(monkeypatch, (manual, source), *arguments) == 1
    captured = capsys.readouterr()
    assert "missing: manual: apt-get and dpkg-deb not found" in captured.err
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["fox.jsonl"]
    assert run(monkeypatch, (manual, source), *arguments, "--allow-missing") == 0
    assert "missing: manual" in capsys.readouterr().err


def test_unknown_sources_are_named_and_known_ones_listed(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, (source,), "--only", "fxo", "--destination", str(tmp_path)) == 2
    assert "did you mean 'fox'?" in capsys.readouterr().err
    assert run(monkeypatch, (source,), "--list", "--destination", str(tmp_path)) == 0
    assert "not made" in capsys.readouterr().out


def test_alternatives_are_tried_in_order_and_the_registrys_word_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, model = part("packages"), part("model")
    monkeypatch.setattr(packages.shutil, "which", lambda tool: tool)
    asked: list[str] = []

    def tool(command: list[str], folder: Path) -> str:
        if command[0] == "dpkg-deb":
            return ""
        asked.append(command[-1])
        if command[-1] != "b-doc":
            return f"E: Unable to locate package {command[-1]}"
        (folder / "b-doc_3%3a1.0-2_all.deb").write_bytes(b"")
        return ""

    monkeypatch.setattr(packages, "_run", tool)
    had = packages.obtain(model.Package("debian", "a-doc|b-doc"), tmp_path)
    assert (asked, had.name, had.version) == (["a-doc", "b-doc"], "b-doc", "3:1.0-2")
    with pytest.raises(model.SourceError, match="Unable to locate package c-doc"):
        packages.obtain(model.Package("debian", "c-doc"), tmp_path)


def test_the_destination_may_be_relative(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages, building = part("packages"), part("building")
    monkeypatch.setattr(building, "obtain", packages.obtain)
    monkeypatch.setattr(packages.shutil, "which", lambda tool: tool)
    with zipfile.ZipFile(tmp_path / "fox-1.2.whl", "w") as bundle:
        bundle.writestr("LICENSE", "Permission is hereby granted")
        bundle.writestr("text", "\n\n".join(prose(9_000)))

    def command(package: Any, name: str, download: Path) -> list[str]:
        code = "import shutil, sys; shutil.copy(*sys.argv[1:])"  # as pip does, into the folder that it is told
        return [sys.executable, "-c", code, str(tmp_path / "fox-1.2.whl"), str(download)]

    monkeypatch.setattr(packages, "_command", command)
    monkeypatch.chdir(tmp_path)
    building.build(source, Path("corpus"), lambda step: None)
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["fox.jsonl", "manifest.json"]


def test_archives_that_leave_their_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as bundle:
        bundle.add(tmp_path / "evil", "../evil2")
    (tmp_path / "into").mkdir()
    with pytest.raises(part("model").SourceError, match="cannot be unpacked"):
        part("packages").unpack(tmp_path / "a.tgz", tmp_path / "into")
    assert not (tmp_path / "evil2").exists()


def test_the_catalogue_is_whole() -> None:
    sources = part("catalogue").SOURCES
    assert len({source.name for source in sources}) == len(sources)
    for source in sources:
        assert source.licence
        assert any(package.licence_file for package in source.packages)
        for package in source.packages:
            assert (package.version is None) == (package.registry == "debian"), "registries of versions pin theirs"
