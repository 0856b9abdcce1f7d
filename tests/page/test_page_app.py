"""The page as Streamlit runs it, without a browser."""

from pathlib import Path
from typing import Any

import pytest
from html_text import Page
from named_ads import copy_of, ids_of

from torchrec_adrec.errors import DataError
from torchrec_adrec.export.ad_file import AdIds
from torchrec_adrec.export.update import Updater
from torchrec_adrec.page import reports
from torchrec_adrec.page.answer import IMPRESSIONS, reasons
from torchrec_adrec.serve.open_run import example_users
from torchrec_adrec.serve.recommender import Recommender

AppTest = pytest.importorskip("streamlit.testing.v1").AppTest
pytestmark = pytest.mark.page
TAB = "tab"  # the key of `torchrec_adrec.page.app`, which needs Streamlit
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


def test_figures_are_of_the_objective_that_names_them(run: Path) -> None:
    """A run of three labels, whose predictions must not stand for one another."""
    page, user = open_page(run), example_users(run)[0]
    served = Recommender.load(run)
    expected, shown = served.recommend(user).ads, page.dataframe[0].value
    names = served.encoder.schema.label_names
    assert len(names) == 3
    for name in (*names, "score"):
        assert list(shown[name]) == expected[name].to_list()
    (caption,) = (c.value for c in page.caption if "columns add" in c.value)
    assert caption == f"What columns add to the prediction of {names[0]}:"
    table = reasons(served.explain(user, int(ads_of(page)[0])), names[0])
    assert list(page.dataframe[1].value["adds"]) == table["adds"].to_list()
    (times,) = (c.value for c in page.caption if "candidates" in c.value)
    for stage in ("encode", "retrieve", "rank", "total"):
        assert float(times.partition(f" {stage} ")[2].partition(",")[0]) > 0


def test_reasons_name_the_ad_as_a_person_knows_it(page_run: Path) -> None:
    page = open_page(page_run)
    ads = page.dataframe[0].value
    for expander, ad, item in zip(
        page.expander, ads["ad_id"], ads["item"], strict=True
    ):
        assert f": ad {ad} · {item} · " in expander.label


def test_rivals_stand_under_their_names(page_run: Path) -> None:
    page = open_page(page_run)
    ads = set(ads_of(page))
    rivals = [
        c for c in page.columns if c.subheader and "alone" in c.subheader[0].value
    ]
    columns = {"Popularity alone": IMPRESSIONS, "Retrieval alone": "score"}
    assert [c.subheader[0].value for c in rivals] == list(columns)
    for column in rivals:
        table = column.dataframe[0].value
        assert table.columns[2] == columns[column.subheader[0].value]
        among = len(ads & set(table["ad_id"]))
        assert column.caption[0].value == f"{among} of these are among the 10."


def test_a_new_user_gets_ads_like_those_picked(page_run: Path) -> None:
    page, served = open_page(page_run), Recommender.load(page_run)
    page.radio[0].set_value("a brand-new user").run()
    picks = page.multiselect[0]
    shares = []
    for brand in ("0", "3"):
        # An item's number says its brand: 7 of them.
        liked = [o for o in picks.options if int(o.split(" ")[0][1:]) % 7 == int(brand)]
        values = [option.split(" ")[0] for option in liked[:3]]
        page.multiselect[0].set_value(values).run()
        assert not page.exception and not page.error
        # All three count, and nothing else is known of this user.
        expected = served.recommend({"seen": values}).ads["ad_id"]
        assert ads_of(page) == list(map(str, expected))
        shares.append(set(ads_of(page)))
    assert shares[0] != shares[1]


def test_ads_of_an_edited_user_are_those_of_that_user(page_run: Path) -> None:
    """Also after others were looked at, whose fields have the same names."""
    served, users = Recommender.load(page_run), example_users(page_run)

    def expected(user: Any) -> list[tuple[str, float]]:
        ads = served.recommend(user).ads
        why = reasons(served.explain(user, ads["ad_id"][0]), "click")
        pairs = list(zip(map(str, ads["ad_id"]), ads["click"], strict=True))
        return pairs + list(zip(why["column"], why["adds"], strict=True))

    def shown() -> list[tuple[str, float]]:
        ads, why = (table.value for table in page.dataframe[:2])
        pairs = list(zip(ads["ad_id"], ads["click"], strict=True))
        return pairs + list(zip(why["column"], why["adds"], strict=True))

    page, first, second = open_page(page_run), dict(users[0]), dict(users[1])
    page.number_input("user 0: age").set_value(7.0).run()
    assert shown() == expected(first | {"age": 7.0}) != expected(first)
    # An emptied field is a missing value.
    page.number_input("user 0: age").set_value(None).run()
    page.selectbox("user 0: city").set_value(None).run()
    assert shown() == expected(first | {"age": None, "city": None}) != expected(first)
    page.selectbox("example").set_value(1).run()
    assert shown() == expected(second)
    city = next(
        c for c in page.selectbox("user 1: city").options if c != second["city"]
    )
    page.selectbox("user 1: city").set_value(city).run()
    assert shown() == expected(second | {"city": city}) != expected(second)
    page.selectbox("example").set_value(0).run()
    assert page.number_input("user 0: age").value == first["age"]
    assert shown() == expected(first)
    # The form of another preparation of the data is not shown for this one.
    page.number_input("user 0: age").set_value(7.0).run()
    page.session_state["build"] = "another"
    page.run()
    assert page.number_input("user 0: age").value == first["age"]
    assert shown() == expected(first)


def test_popularity_does_not_count_drawn_negatives(
    page_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec_adrec.evaluation.shown._are_drawn", lambda _: True)
    page = open_page(page_run)
    clicks = Recommender.load(page_run).parts.catalog["clicks"]
    (shown,) = (t.value[IMPRESSIONS] for t in page.dataframe if IMPRESSIONS in t.value)
    assert list(shown) == clicks.sort(descending=True).head(10).to_list()


def test_the_page_knows_an_update_of_the_ads(page_run: Path, tmp_path: Path) -> None:
    run = copy_of(page_run, tmp_path / "run")
    page = open_page(run)
    first = ads_of(page)[0]
    updater = Updater(run)
    updater.apply(remove=AdIds.read(ids_of(tmp_path, first)))
    page.run()
    assert not page.exception and not page.error
    assert len(ads_of(page)) == 10 and first not in ads_of(page)


def test_a_stage_that_was_made_again_is_opened_again(
    page_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the page is open; nothing is opened twice without need."""
    page, builds, opened = open_page(page_run), reports.check_run(page_run), []
    original = Recommender.load

    def load(run: Path) -> Recommender:
        opened.append(run)
        return original(run)

    monkeypatch.setattr(Recommender, "load", load)
    page.run()
    assert opened == []
    for count, stage in enumerate(builds, start=1):
        # It alone differs from what is open by now.
        builds = builds | {stage: f"another {stage}"}
        monkeypatch.setattr(reports, "check_run", lambda _, now=builds: now)
        page.run()
        assert opened == count * [page_run] and len(ads_of(page)) == 10


def test_each_tab_shows_its_report_and_nothing_else(page_run: Path) -> None:
    page = AppTest.from_string(SCRIPT.format(path=str(page_run)), default_timeout=300)
    contents = {
        "Quality": reports.quality,
        "Data": reports.data,
        "Training": reports.training,
    }
    for title, content in contents.items():
        page.session_state[TAB] = title
        page.run()
        assert not page.exception and not page.error
        drawn = {tab.label: list(tab.children.values()) for tab in page.tabs}
        assert [label for label in drawn if drawn[label]] == [title]
        (frame,) = drawn[title]
        assert frame.proto.srcdoc == content(page_run)
        assert len(Page(frame.proto.srcdoc).text) > 100


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
