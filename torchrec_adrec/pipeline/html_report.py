"""The Markdown reports of a run as one HTML file that needs no other file or host."""

import base64
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from torchrec_adrec.pipeline.html_style import SCRIPT, STYLE

# The browser itself refuses whatever would come from elsewhere.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'"
)


def html_page(run: Path, reports: Mapping[str, str], title: str) -> str:
    """Return one HTML page of some Markdown reports of a run.

    Args:
        run: folder of the run.
        reports: each report's path in it, as `data/report.md`, and its text; they are
            parts of the page in this order, and links between them stay within it.
        title: of the page.
    """
    anchors = {path: f"part-{number}" for number, path in enumerate(reports)}
    parts, contents = [], []
    for path, anchor in anchors.items():
        part = Part(run, path, reports[path], anchors)
        parts.append(f'<section id="{anchor}">\n{part.html}</section>')
        contents += part.contents
    links = "".join(f'<a href="#{a}">{escape(name)}</a>' for a, name in contents)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<nav>{links}</nav>\n<main>\n{''.join(parts)}</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


class Part:
    """One Markdown report as a part of a page.

    Args:
        run: folder of the run; only pictures of it are shown.
        path: of the report in it, from which its links and pictures start.
        text: of the report.
        anchors: of the reports that are parts of the same page, by path.

    Attributes:
        html: the part, its pictures within it.
        contents: anchor and text of its headings of the first two levels.
    """

    def __init__(
        self, run: Path, path: str, text: str, anchors: Mapping[str, str]
    ) -> None:
        self._run, self._folder, self._anchors = run, Path(path).parent, anchors
        self._seen: Counter[str] = Counter()
        self._prefix = anchors[path]
        self.contents: list[tuple[str, str]] = []
        # Without `html`, a tag in the text stays text.
        reader = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = reader.parse(text)
        for place, token in enumerate(tokens):
            if token.type == "heading_open":
                self._name(token, tokens[place + 1].content)
            for child in token.children or ():
                self._localise(child)
        html = reader.renderer.render(tokens, reader.options, {})
        # A wide table scrolls by itself, and not the whole page.
        html = html.replace("<table>", '<div class="table"><table>')
        self.html = html.replace("</table>", "</table></div>")

    def _name(self, heading: Token, text: str) -> None:
        slug = re.sub(r"\W+", "-", text.lower()).strip("-")
        self._seen[slug] += 1
        anchor = f"{self._prefix}-{slug}-{self._seen[slug]}"
        heading.attrSet("id", anchor)
        if heading.tag in ("h1", "h2"):
            self.contents.append((anchor, text))

    def _localise(self, token: Token) -> None:
        """Put a picture into the page, and let a link to another part stay in it."""
        if token.type == "image":
            source = str(token.attrGet("src"))
            picture = self._picture(source)
            if picture is None:
                name = token.content
                token.type, token.tag, token.children = "text", "", None
                token.content = f"[no picture {source}: {name}]"
            else:
                token.attrSet("src", picture)
        elif token.type == "link_open":
            target = normpath((self._folder / str(token.attrGet("href"))).as_posix())
            if target in self._anchors:
                token.attrSet("href", f"#{self._anchors[target]}")

    def _picture(self, source: str) -> str | None:
        """Return a PNG file of the run as a data URI; None: it is no such file.

        Text of the data must not make the page show, or ask for, anything else.
        """
        run = self._run.resolve()
        path = (run / self._folder / unquote(source)).resolve()
        if path.suffix != ".png" or not path.is_relative_to(run) or not path.is_file():
            return None
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
