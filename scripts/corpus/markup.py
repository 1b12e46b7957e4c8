"""Prose from HTML manuals, by the standard library's parser."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

from corpus.cleaning import HEADING, is_manual_prose, tidy
from corpus.model import Page

_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
})  # fmt: skip
_SKIPPED = frozenset({
    "script", "style", "head", "nav", "header", "footer", "aside", "pre", "form", "button", "svg", "math",
    "select", "textarea", "noscript",
})  # fmt: skip
_BLOCKS = frozenset({
    "address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p",
    "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
})  # fmt: skip
_HEADINGS = frozenset({
    "h1", "h2", "h3", "h4", "h5", "h6",
})  # fmt: skip
_MAIN_IDENTIFIERS = frozenset({
    "page-content", "content", "main-content", "main", "docs-body",
})  # fmt: skip
_SKIPPED_CLASSES = frozenset({
    "headerlink", "anchor", "related", "sphinxsidebar", "sidebar", "toctree-wrapper", "toc",
    "contents", "navheader", "navfooter", "nav", "navbar", "breadcrumb", "footer",
    "sig", "code-header", "item-decl", "rightside",
    "out-of-band", "src", "sr-only", "eqno", "admin-links",
    "quickview", "top", "breadcrumbs", "linklist", "search-bar", "srclink", "doc-index", "funcprototype",
    "funcsynopsis", "refsynopsisdiv", "apidocs-source", "classifier",
    "sphx-glr-footer", "sphx-glr-script-out", "sphx-glr-timing", "versionwarning",
    "footnote-reference",
})  # fmt: skip
_LISTINGS = ("highlight", "programlisting", "literallayout", "synopsis")
_ANNOUNCEMENT = 200
_SECTION_NUMBER = re.compile(r"^(?:Chapter )?(?:[A-Z]\.)?\d+(?:\.\d+)*\.?\s+(?=\S*[A-Za-z])")
_MANUAL_NAME_BEFORE = re.compile(r"^(?:Erlang --|OpenStack Docs:) ")
_MANUAL_NAME_BEHIND = re.compile(" [\u2014\u2013|] | :: | - (?:The Rust|Rust|std|SymPy|Apache HTTP)")
_ADDRESS = re.compile(r"\(?\b(?:https?|ftp)://\S+")


class _Reader(HTMLParser):
    """Collects blocks of text; those inside the page's main part are marked."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.blocks: list[tuple[bool, bool, str]] = []
        self._open: list[tuple[str, bool, bool]] = []
        self._skip = self._main = 0
        self._heading = self._in_title = False
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "img" and not self._skip:
                values = dict(attrs)
                # formulas as pictures carry their source
                self._text.append(f" {values.get('alt') or ''} " if values.get("class") == "math" else "")
            elif tag == "br":
                self._text.append(" ")
            elif tag == "hr":
                self._flush()
            return
        values = dict(attrs)
        classes = set((values.get("class") or "").split())
        # the same classes mark words of code inside a sentence, which stay
        listing = tag == "pre" or (tag in ("div", "table") and any(name.startswith(_LISTINGS) for name in classes))
        skipped = listing or tag in _SKIPPED or not classes.isdisjoint(_SKIPPED_CLASSES)
        main = (
            tag in ("main", "article")
            or values.get("role") == "main"
            or (values.get("id") or "") in _MAIN_IDENTIFIERS
            or (tag == "div" and ("body" in classes or "maincolumn" in classes))
        )
        if tag == "title" and not self.title:
            self._in_title = True
        if listing and not self._skip:
            self._flush()
            # "For example:" announces the listing that is left out here
            if self.blocks and self.blocks[-1][2].endswith(":") and len(self.blocks[-1][2]) <= _ANNOUNCEMENT:
                self.blocks.pop()
        if tag in _BLOCKS:
            self._flush()
            self._heading = tag in _HEADINGS or (self._heading and tag not in ("p", "div", "section", "li", "td", "dd"))
        self._open.append((tag, skipped, main))
        self._skip += skipped
        self._main += main

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if not any(opened == tag for opened, _, _ in self._open):
            return
        if tag in _BLOCKS:
            self._flush()
            self._heading = False
        # what was left open inside, as <p> and <li> often are, ends with it
        while self._open:
            opened, skipped, main = self._open.pop()
            self._skip -= skipped
            self._main -= main
            if opened == tag:
                break

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skip:
            self._text.append(data)

    def close(self) -> None:
        super().close()
        self._flush()

    def _flush(self) -> None:
        text = tidy(re.sub(r"\s+", " ", "".join(self._text)))
        self._text.clear()
        if text:
            self.blocks.append((self._main > 0, self._heading, text))


def read_html(text: str) -> Page:
    """Returns the prose of one HTML page: its main part where the page marks one, else its body.

    Code listings, navigation, signatures and forms are dropped, and so are blocks that are no sentences. Headings are kept
    with a mark, by which those that head nothing are dropped later.
    """
    reader = _Reader()
    reader.feed(text)
    reader.close()
    marked = any(main for main, _, _ in reader.blocks)
    paragraphs = []
    for main, heading, block in reader.blocks:
        if marked and not main:
            continue
        block = tidy(re.sub(r"\s*[¶§]+|#$|\[source\]|\[edit\]|\[link\]", "", block))
        if heading:
            paragraphs.append(HEADING + _SECTION_NUMBER.sub("", block))
        elif is_manual_prose(_ADDRESS.sub("", block) or " "):
            paragraphs.append(block)
    return Page(_title(reader.title), [block for block in paragraphs if block != HEADING])


def _title(text: str) -> str:
    """Takes section numbers and the manual's own name off a page's title."""
    title = _MANUAL_NAME_BEHIND.split(tidy(re.sub(r"\s+", " ", text)))[0]
    return _SECTION_NUMBER.sub("", _MANUAL_NAME_BEFORE.sub("", title)).strip()


def html_reader(*patterns: str, without: tuple[str, ...] = ()) -> "HtmlFolder":
    """Returns a reader of the HTML files below a folder.

    Args:
        patterns: Globs relative to the folder into which the packages are unpacked.
        without: Patterns of paths, as a whole, to leave out.
    """
    return HtmlFolder(patterns, without)


class HtmlFolder:
    """Reads the HTML files that patterns name.

    Args:
        patterns: See `html_reader`.
        without: See `html_reader`.
    """

    _ALWAYS_WITHOUT = ("*/genindex*", "*/search.html", "*/py-modindex.html", "*/_modules/*", "*/_sources/*", "*/print.html",
                       "*/404.html", "*/license*", "*/copyright*", "*/contents.html", "*/_static/*", "*/bookindex.html")  # fmt: skip

    def __init__(self, patterns: tuple[str, ...], without: tuple[str, ...]) -> None:
        self.patterns, self.without = patterns, (*self._ALWAYS_WITHOUT, *without)

    def __call__(self, folder: Path) -> Iterator[Page]:
        """Yields a page per file, in the order of their paths; files reached twice by links are read once."""
        files = {path.resolve(): path for pattern in self.patterns for path in folder.glob(pattern) if path.is_file()}
        for path in sorted(files.values()):
            name = "/" + path.relative_to(folder).as_posix().lower()
            if not any(fnmatch(name, pattern) for pattern in self.without):
                yield read_html(_decoded(path.read_bytes()))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
