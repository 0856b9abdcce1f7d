"""A visitor in a real Chromium: pick a user, change a feature, read ten ads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visit, chromium, serving

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def address(page_run: Path) -> Iterator[str]:
    with serving(page_run) as url:
        yield url


@pytest.fixture
def visit() -> Iterator[Visit]:
    with chromium() as window:
        yield window
        assert (window.foreign, window.errors) == ([], [])


def choose(visit: Visit, label: str, value: str) -> None:
    """Type a value into a box of the form, and wait for the answer."""
    title = visit.page.get_by_text(label, exact=True)
    boxes = visit.page.locator("[data-testid=stSelectbox]").filter(has=title)
    box = boxes.locator("input")
    box.click()
    box.fill(value)
    box.press("Enter")
    visit.settle()


def test_ten_ads_follow_the_user(visit: Visit, address: str) -> None:
    visit.page.goto(address)
    visit.page.get_by_text("Why is it there?").wait_for()
    first = visit.ads()
    assert len(first) == 10 and [row[0] for row in first] == list(
        map(str, range(1, 11))
    )
    choose(visit, "Example user (held out from training)", "3")
    visit.page.wait_for_timeout(500)
    other = visit.ads()
    assert len(other) == 10 and other != first
    choose(visit, "city", "c5")
    choose(visit, "user", "u5")
    visit.page.wait_for_timeout(500)
    changed = visit.ads()
    assert len(changed) == 10 and changed != other
    assert visit.page.get_by_text("retrieval: place").count() == 1
    for title in ("Popularity alone", "Retrieval alone"):
        assert visit.page.get_by_role("heading", name=title).count() == 1
    assert visit.page.get_by_role("alert").count() == 0


def test_the_other_tabs_show_the_reports(visit: Visit, address: str) -> None:
    visit.page.goto(address)
    for tab, heading in (
        ("Quality", "Funnel"),
        ("Data", "Columns"),
        ("Training", "Warnings"),
    ):
        visit.page.get_by_role("tab", name=tab).click()
        frame = visit.page.frame_locator(f"iframe[title={tab}]")
        frame.get_by_role("heading", name=heading, exact=True).wait_for()
        # A picture that the policy of the page forbids would have no width.
        for picture in frame.locator("img").all():
            assert picture.evaluate("image => image.naturalWidth") > 100


def test_the_report_sorts_its_tables(visit: Visit, page_run: Path) -> None:
    visit.page.goto((page_run / "report.html").as_uri())
    assert visit.page.locator("img").count() == 8
    heading = visit.page.get_by_role("heading", name="Ten ads")
    table = heading.locator("xpath=following-sibling::div[1]/table")
    head = table.locator("th", has_text="score")
    column = [cell.inner_text() for cell in table.locator("th").all()].index("score")
    for sign in (1, -1):
        head.click()
        cells = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        scores = [sign * float(cell) for cell in cells]
        assert scores == sorted(scores) and len(scores) == 10
    assert "<script>alert(1)</script>" in visit.page.locator("main").inner_text()
