"""`report.html` is `report.md` in one file: whole, self-contained, its text escaped."""

import base64
import re
from pathlib import Path

import polars as pl
import pytest
from html_text import Page, cells_of, check_self_contained
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from torchrec_adrec.pipeline.html_report import html_page
from torchrec_adrec.pipeline.stage_tables import ads_lines
from torchrec_adrec.runtime.markdown import code, literal

PICTURE = b"\x89PNG\r\n\x1a\n of a run"
REPORTS = ("report.md", "data/report.md")
TEXT = """# Run report

| measured | value |
|---|---|
| rows | 1,000 |
| AUC | 0.75 |

## Towers

![loss](retrieval/loss.png)

The data: [report](data/report.md), [elsewhere](https://example.org/x)
"""
DATA = """# The data

![the data](report.png)

| split | rows |
|---|---|
| train | 800 |
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for name in ("retrieval/loss.png", "data/report.png"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(PICTURE)
    (tmp_path / "outside.png").write_bytes(PICTURE)
    (run / "report.md").write_text(TEXT)
    (run / "data/report.md").write_text(DATA)
    return run


def html_of(run: Path) -> str:
    return html_page(run, {path: (run / path).read_text() for path in REPORTS}, "run")


def page_of(run: Path) -> Page:
    return Page(html_of(run))


def test_tables_pictures_and_links_of_all_parts(folder: Path) -> None:
    page = page_of(folder)
    check_self_contained(page)
    assert page.tables == cells_of(TEXT) + cells_of(DATA)
    assert page.tables[0][2:4] == ["rows", "1,000"]
    encoded = base64.b64encode(PICTURE).decode()
    assert [a["src"].partition(",")[2] for a in page.all("img")] == [encoded] * 2
    hrefs = [a["href"] for a in page.all("a")]
    assert "#part-1" in hrefs and "https://example.org/x" in hrefs
    assert "data/report.md" not in hrefs
    names = re.findall(r"<a href=\"#[^\"]*\">([^<]*)</a>", html_of(folder))
    assert names[:3] == ["Run report", "Towers", "The data"]


@pytest.mark.parametrize(
    "source",
    [
        "../outside.png",
        "https://example.org/x.png",
        "//host/x.png",
        "report.md",
        "no.png",
    ],
)
def test_a_picture_that_is_none_of_the_run_is_text(folder: Path, source: str) -> None:
    (folder / "report.md").write_text(f"![<b>]({source})\n")
    page = page_of(folder)
    check_self_contained(page)
    assert len(page.all("img")) == 1
    assert f"[no picture {source}: <b>]" in page.text


def test_names_of_the_data_stay_text(folder: Path) -> None:
    names = [
        "<script>alert(1)</script>",
        "a|b *c* `d` [e](http://f)",
        "![x](//h/y.png)",
    ]
    ads = pl.DataFrame({"ad_id": [1, 2, 3], "click": [0.25, 0.125, 0.1], "name": names})
    # A line that nobody has escaped is text too.
    lines = "\n".join(ads_lines(ads)) + "\n\n<script>alert(2)</script>\n"
    (folder / "report.md").write_text(lines)
    page = page_of(folder)
    check_self_contained(page)
    assert page.tables[0][4:8] == ["1", "1", "0.2500", names[0]]
    assert "<script>alert(2)</script>" in page.text
    assert [page.tables[0][i] for i in (11, 15)] == names[1:]
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"])))
def test_any_text_comes_back_from_markdown(text: str) -> None:
    (cells,) = cells_of(f"| a | b |\n|---|---|\n| x | {literal(text)} |\n")
    assert cells[3] == text
    if text:
        shown = Page(MarkdownIt("commonmark").render(f"- {code(text)}"))
        assert ("code", {}) in shown.tags and shown.text.strip() == text
