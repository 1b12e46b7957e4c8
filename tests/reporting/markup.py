"""Reads a page the way the tests ask about it."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "path", "use", "hr"}


class Page(HTMLParser):
    """The page's elements, with their attributes, text and ancestors."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None], list[int]]] = []
        self.texts: list[tuple[str, list[int]]] = []
        self._open: list[int] = []
        self.feed(source)
        self.close()
        assert not self._open, [self.elements[index][0] for index in self._open]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), list(self._open)))
        if tag not in VOID or self.get_starttag_text().endswith("/>"):
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), list(self._open)))

    def handle_endtag(self, tag):
        if tag in VOID:
            if self._open and self.elements[self._open[-1]][0] == tag:
                self._open.pop()
            return
        assert self._open and self.elements[self._open[-1]][0] == tag, f"</{tag}> closes nothing, {self.getpos()}"
        self._open.pop()

    def handle_data(self, data):
        self.texts.append((data, list(self._open)))

    def all(self, tag):
        return [index for index, element in enumerate(self.elements) if element[0] == tag]

    def attributes(self, index):
        return self.elements[index][1]

    def inside(self, index):
        return [position for position, element in enumerate(self.elements) if index in element[2]]

    def text(self, index):
        return " ".join("".join(text for text, ancestors in self.texts if index in ancestors).split())

    def section(self, name):
        """The text of a section."""
        return self.text(next(i for i in self.all("section") if self.attributes(i)["id"] == name))
