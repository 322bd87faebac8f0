"""A report taken apart: tags, text and headings of the page, and Markdown without its code blocks."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Every tag with its attributes, and the text between them; void and SVG elements need no end."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def plain(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.replace("\N{NO-BREAK SPACE}", " ").split())

    @property
    def sections(self) -> list[str]:
        """The names of the sections, in order."""
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]

    @property
    def headings(self) -> list[int]:
        """The levels of the headings, in order."""
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]


def outside_of_blocks(markdown: str) -> str:
    """Everything outside of code blocks, which must all be closed."""
    outside, fence = [], ""
    for line in markdown.splitlines():
        if not fence and line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert not fence
    return "\n".join(outside)
