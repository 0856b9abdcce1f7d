"""Reads an HTML page: its tags, its text, its tables, and whether it loads anything."""

import re
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt


class Page(HTMLParser):
    """Tags with their attributes, the text, and the cells of each table, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text, self.tables = "", list[list[str]]()
        self.code = ""  # of styles and scripts
        self.is_cell = self.is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.is_code = tag in ("style", "script")
        if tag == "table":
            self.tables.append([])
        if tag in ("td", "th"):
            self.tables[-1].append("")
            self.is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.is_cell &= tag not in ("td", "th")
        self.is_code = False

    def handle_data(self, data: str) -> None:
        self.text += data
        self.code += data if self.is_code else ""
        if self.is_cell:
            self.tables[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def cells_of(markdown: str) -> list[list[str]]:
    """The cells of every table of a Markdown text."""
    return Page(
        MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    ).tables


def check_self_contained(page: Page) -> None:
    """Nothing is loaded: neither pictures, nor scripts, nor styles, nor frames."""
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "video")
        for name in ("src", "srcset", "data", "poster", "background", "action"):
            loaded = attributes.get(name)
            assert loaded is None or loaded.startswith("data:image/png;base64,"), loaded
    assert not re.search(r"url\(|@import|https?:|fetch\(", page.code)
    (policy,) = (a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    for link in page.all("a"):
        if link["href"].startswith("#"):
            assert link["href"][1:] in anchors, link
