"""A visitor in a real Chromium: pick a user, change a feature, read ten ads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WAIT_MS, Visit, chromium, serving

from torchrec_adrec.serve.open_run import example_users
from torchrec_adrec.serve.recommender import Recommender

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


def box_of(visit: Visit, label: str) -> Any:
    """The box of a form that has this label."""
    title = visit.page.get_by_text(label, exact=True)
    boxes = visit.page.locator("[data-testid=stSelectbox]").filter(has=title)
    while boxes.count() != 1:  # that of the user before is there until all is drawn
        visit.page.wait_for_timeout(100)
    return boxes


def choose(visit: Visit, label: str, value: str) -> None:
    """Type a value into a box of the form, and wait for the answer."""
    box = box_of(visit, label).locator("input")
    box.click()
    box.fill(value)
    box.press("Enter")
    visit.settle()


def wait_for_ads(visit: Visit, expected: list[int]) -> None:
    """Wait until the ten ads are these; it fails if they never are."""
    for _ in range(WAIT_MS // 100):
        rows = visit.ads()
        if [row[1] for row in rows] == list(map(str, expected)):
            assert [row[0] for row in rows] == [str(place) for place in range(1, 11)]
            return
        visit.page.wait_for_timeout(100)
    raise AssertionError(f"the page shows {visit.ads()}, expected {expected}")


def test_ten_ads_follow_the_user(visit: Visit, address: str, page_run: Path) -> None:
    """Those that the run serves to the very user that the form holds."""
    served, users = Recommender.load(page_run), example_users(page_run)
    changed = dict(users[3]) | {"city": "c5", "user": "u5"}
    expected = [served.recommend(u) for u in (users[0], users[3], changed)]
    first, other, last = (best.ads["ad_id"].to_list() for best in expected)
    assert first != other != last != first
    visit.page.goto(address)
    visit.page.get_by_text("Why is it there?").wait_for()
    wait_for_ads(visit, first)
    choose(visit, "Example user, of a test row", "3")
    wait_for_ads(visit, other)
    choose(visit, "city", "c5")
    choose(visit, "user", "u5")
    wait_for_ads(visit, last)
    # Why it is there is said of this user's first ad.
    visit.page.get_by_text(f"1: ad {last[0]}").wait_for()
    retrieval = served.explain(changed, last[0]).lines[1]
    visit.page.get_by_text(retrieval, exact=True).wait_for()
    assert visit.page.get_by_text("retrieval: place").count() == 1
    visit.page.get_by_text(f"2: ad {last[1]}").click()
    retrieval = served.explain(changed, last[1]).lines[1]
    visit.page.get_by_text(retrieval, exact=True).wait_for()
    # An emptied field is a missing value.
    box_of(visit, "city").get_by_label("Clear value").click()
    age = visit.page.get_by_label("age", exact=True)
    age.fill("")
    age.press("Enter")
    missing = served.recommend(changed | {"city": None, "age": None})
    wait_for_ads(visit, missing.ads["ad_id"].to_list())
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
        pictures = frame.locator("img").all()
        assert pictures
        for picture in pictures:
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
    table.locator("th", has_text="rank").click()  # 10 is behind 9, not behind 1
    ranks = table.locator("tbody td:nth-child(1)").all_inner_texts()
    assert ranks == [str(rank) for rank in range(1, 11)]
    assert "<script>alert(1)</script>" in visit.page.locator("main").inner_text()
