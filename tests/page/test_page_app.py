"""The page as Streamlit runs it, without a browser."""

from pathlib import Path
from typing import Any

import pytest

from torchrec_adrec.errors import DataError

AppTest = pytest.importorskip("streamlit.testing.v1").AppTest
pytestmark = pytest.mark.page
SCRIPT = """
from pathlib import Path
from torchrec_adrec.page.app import show
show(Path({path!r}))
"""


def open_page(run: Path) -> Any:
    page = AppTest.from_string(SCRIPT.format(path=str(run)), default_timeout=300).run()
    assert not page.exception and not page.error
    return page


def ads_of(page: Any) -> list[str]:
    return list(page.dataframe[0].value["ad_id"])


def test_a_changed_user_gets_other_ads(page_run: Path) -> None:
    page = open_page(page_run)
    first = ads_of(page)
    assert len(first) == 10
    page.selectbox("example").set_value(1).run()
    other = ads_of(page)
    assert other != first
    page.multiselect("user 1: seen").set_value(["a0", "a7", "a14"]).run()
    assert not page.exception and ads_of(page) != other
    page.selectbox("example").set_value(0).run()
    assert ads_of(page) == first


def test_a_new_user_gets_ads_like_those_picked(page_run: Path) -> None:
    page = open_page(page_run)
    page.radio[0].set_value("a brand-new user").run()
    picks = page.multiselect[0]
    shares = []
    for brand in ("0", "3"):
        # An item's number says its brand: 7 of them.
        liked = [o for o in picks.options if int(o.split(" ")[0][1:]) % 7 == int(brand)]
        values = [option.split(" ")[0] for option in liked[:3]]
        page.multiselect[0].set_value(values).run()
        assert not page.exception and not page.error
        shares.append(set(ads_of(page)))
    assert shares[0] != shares[1]


def test_a_refused_request_is_one_line(
    page_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page stays, so that the visitor can mend what was refused."""

    def refuse(*_: object) -> None:
        raise DataError("C1 is '*x*', expected eight digits")

    monkeypatch.setattr("torchrec_adrec.page.app.answer", refuse)
    page = AppTest.from_string(SCRIPT.format(path=str(page_run)), default_timeout=300)
    page.run()
    assert not page.exception and len(page.selectbox) > 1
    assert [error.value for error in page.error] == [
        r"C1 is '\*x\*', expected eight digits"
    ]
