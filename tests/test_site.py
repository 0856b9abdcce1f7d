"""The documentation's site has every page, and its links lead to pages of it."""

import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def site() -> ModuleType:
    path = REPOSITORY / "packaging/site.py"
    spec = importlib.util.spec_from_file_location("site_of_the_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(part: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(part, str):
        return [part]
    values = part.values() if isinstance(part, dict) else part
    return [page for value in values for page in named(value)]


def test_every_page_is_in_the_navigation(site: ModuleType) -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text()
    pages = named(yaml.safe_load(text.partition("\nnav:\n")[2]))
    generated = {"commands.md", "python.md"}
    assert sorted(pages) == sorted({*map(site.page_of, site.sources()), *generated})


def test_links_lead_to_pages_or_are_names(site: ModuleType) -> None:
    pages = set(map(site.page_of, site.sources()))
    for source in site.sources():
        if source.endswith(".md"):
            text = (REPOSITORY / source).read_text()
            for link in re.findall(
                r"\]\((?!http|#)([^)#\s]+)", site.with_links_of_the_site(text, source)
            ):
                assert link in pages, f"{source}: {link}"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](index.md#kinds)", "[x](ads_index.md#kinds)"),
        ("[LOG](../benchmarks/LOG.md)", "[LOG](log.md)"),
        ("[`a`](../configs/movie_lab.yaml)", "`a`"),
        ("[x](#below)", "[x](#below)"),
        ("[x](https://optuna.org)", "[x](https://optuna.org)"),
    ],
)
def test_a_link_is_that_of_the_site(link: str, expected: str, site: ModuleType) -> None:
    assert site.with_links_of_the_site(link, "docs/sweeps.md") == expected


def test_a_notebook_is_its_text_and_its_code(site: ModuleType) -> None:
    page = site.notebook((REPOSITORY / "docs/tutorial.ipynb").read_text())
    assert page.startswith("# From a log to ten ads") and "```python" in page
