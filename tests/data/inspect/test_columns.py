"""What is concluded of single columns, and what must not be."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from drafts import unsure

from torchrec_adrec.data.inspect.forms import profile
from torchrec_adrec.data.inspect.proposal import Hints, propose
from torchrec_adrec.data.inspect.sample import Sample, read_sample
from torchrec_adrec.data.inspect.text_layout import text_layout
from torchrec_adrec.data.inspect.words import ADS, LABELS, USERS, base, rank

ROWS = 1000


@pytest.mark.parametrize(
    ("name", "values", "form"),
    [
        ("x", ["0", "1", "1"], "flag"),
        ("x", ["yes", "no", "no"], "flag"),
        ("x", ["7", "8", "-9"], "integer"),
        ("x", ["7.5", "8", "1e3"], "decimal"),
        ("x", ["7,5", "1.234,0", "8"], "decimal"),
        ("x", ["68fd1e64", "80e26c9b", "12345678"], "hex"),
        ("x", ["12345678", "87654321", "11111111"], "integer"),
        ("x", ["a", "a", "a"], "constant"),
        ("x", [None, None], "empty"),
        ("x", ["2024-05-01", "2024-05-02T10:00:00Z"], "time"),
        ("x", ["31.12.2024", "01.01.2025"], "time"),
        ("ts", ["1714000000", "1714000001"], "time"),
        # An id may be any number.
        ("product", ["1714000000", "1714000001"], "integer"),
        ("x", ["a|b", "b", "a|b|c"], "list"),
        ("x", ["[1, 2]", "[]", "[3]"], "list"),
        ("campaign", ["shoes", "books, used", "books, used"], "text"),
        ("title", ["a nice shoe", "a book", "nice"], "text"),
    ],
)
def test_form(name: str, values: list[str], form: str) -> None:
    assert profile(pl.Series(name, values, dtype=pl.String)).form == form


def test_words_between_numbers_mean_no_value() -> None:
    column = profile(pl.Series("age", ["34", "51", "?", "NULL", "20"]))
    assert column.form == "integer" and column.words == ("?", "NULL")
    assert column.missing == 2
    # A country may be called so.
    assert profile(pl.Series("country", ["NA", "NL", "DE"])).words == ()


def test_names() -> None:
    assert base("movieId") == "movie" and base("customer_no") == "customer"
    assert rank("uid", USERS) is not None and rank("adId", ADS) == 0
    # The age of a user names nobody.
    assert rank("user_age", USERS) is None
    assert LABELS.index("click") < LABELS.index("purchase")


@pytest.mark.parametrize(
    ("separator", "encoding"),
    [
        (",", "utf-8"),
        (";", "latin-1"),
        ("\t", "cp1252"),
        ("|", "utf-16"),
        ("::", "utf-8"),
    ],
)
def test_layout(separator: str, encoding: str, tmp_path: Path) -> None:
    sign = "€" if encoding == "cp1252" else "é"
    price = "7.5" if separator == "," else "7,5"
    lines = [separator.join(row) for row in (["user", "price"], [f"{sign}a", price])]
    path = tmp_path / "x.txt"
    path.write_bytes("\n".join(lines + lines[1:] * 9).encode(encoding))
    layout = text_layout(path)
    assert (layout.separator, layout.encoding) == (separator, encoding)
    assert layout.columns == ("user", "price") and layout.header
    assert list(layout.rows(path)) == [[f"{sign}a", price]] * 10


def test_names_are_made_where_the_first_line_is_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("u1,7,1\nu2,8,0\n")
    layout = text_layout(tmp_path / "x.csv")
    assert not layout.header and layout.columns == ("column_1", "column_2", "column_3")
    assert len(list(layout.rows(tmp_path / "x.csv"))) == 2


@pytest.fixture
def log() -> dict[str, object]:
    rng = np.random.default_rng(0)
    clicked = rng.integers(2, size=ROWS)
    user, item = rng.integers(50, size=ROWS), rng.integers(40, size=ROWS)
    return {
        "user": user,
        "item": item,
        "clicked": clicked,
        "row": np.arange(ROWS) * 7,
        "version": ["v1"] * ROWS,
        "area": [f"0{1000 + u}" for u in user],
        "brand": [f"b{i % 7}" for i in item],
        "hour": rng.integers(24, size=ROWS),
        "seconds_on_page": np.where(clicked == 1, rng.random(ROWS), 0),
        "next_page": np.where(clicked == 1, "thanks", "home"),
        "purchased": clicked * rng.integers(2, size=ROWS),
    }


def table(log: dict[str, object], folder: Path) -> tuple[dict, str]:  # type: ignore[type-arg]
    pl.DataFrame(log).write_csv(folder / "log.csv")
    sample = read_sample(folder / "log.csv")
    proposal = propose(sample, folder / "my.yaml", Hints())
    return yaml.safe_load(proposal.yaml)["data"]["table"], proposal.yaml


def test_roles(log: dict[str, object], tmp_path: Path) -> None:
    settings, _ = table(log, tmp_path)
    assert settings["labels"]["click"] == {"column": "clicked"}
    assert settings["labels"]["purchased"] == {}
    assert settings["labels"]["seconds_on_page"]["kind"] == "value"
    assert settings["user"] == {"user": "text", "area": "text", "hour": "text"}
    assert settings["ad"] == {"item": "text", "brand": "text"}
    assert set(settings["ignore"]) == {"row", "version", "next_page"}


def test_a_column_that_tells_the_click_is_no_feature(
    log: dict[str, object], tmp_path: Path
) -> None:
    clicked = np.asarray(log["clicked"])
    noise = np.random.default_rng(1).random(ROWS)
    for name, leak, is_feature in (
        ("quality", clicked + noise, False),
        ("quality", 3 - clicked - noise, False),
        ("quality", clicked + 9 * noise, True),
    ):
        settings, text = table({**log, name: leak}, tmp_path)
        assert (name in settings["user"]) == is_feature
        assert (f"{name} predicts the click" in text) != is_feature


def test_a_column_that_helps_much_is_named(
    log: dict[str, object], tmp_path: Path
) -> None:
    """It stays a feature, because the best ones are like that too."""
    clicked = np.asarray(log["clicked"])
    quality = clicked + 1.6 * np.random.default_rng(1).random(ROWS)
    settings, text = table({**log, "quality": quality}, tmp_path)
    assert settings["user"]["quality"] == "number"
    assert "quality: neither" in text and "an AUC of 0.9" in text
    assert "AUC" not in table(log, tmp_path)[1]


def test_broken_values_hide_no_column(log: dict[str, object], tmp_path: Path) -> None:
    """One broken time would else make every time an odd text, and be no bad row."""
    hours, minutes = np.divmod(np.arange(ROWS), 60)
    times = [
        f"2024-05-01T{h:02}:{m:02}:00+02:00"
        for h, m in zip(hours, minutes, strict=True)
    ]
    days = [f"01.05.2024 {t[11:16]}" for t in times]
    amounts = [f"{x:.2f}" for x in np.random.default_rng(1).random(ROWS)]
    for moments in (times, days):
        broken = {
            "seen_at": ["soon", *moments[1:]],
            "amount": ["?a", "?b", "?c", "?d", *amounts[4:]],
        }
        settings, text = table({**log, **broken}, tmp_path)
        assert settings["time"] == "seen_at" and settings["user"]["amount"] == "number"
        assert "seen_at: 1 values such as 'soon' are no times" in text
        assert "amount: 4 values such as '?a' are no numbers" in text
    # Words that are digits by chance are no numbers.
    codes = ["A12", "B7", "C9", "D4", *map(str, range(4, ROWS))]
    assert profile(pl.Series("code", codes)).form == "text"


def test_what_goes_with_two_ids_tells_which_is_the_users() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(50, size=ROWS), rng.integers(40, size=ROWS)
    rows = {
        "alpha": [f"a{i}" for i in users],
        "beta": [f"b{i}" for i in items],
        "clicked": rng.integers(2, size=ROWS).astype(str),
        "country": [f"c{i % 3}" for i in users],
        "genre": [f"g{i % 5}" for i in items],
    }

    def ids(**renamed: str) -> tuple[str, str, str]:
        frame = pl.DataFrame({renamed.get(k, k): v for k, v in rows.items()})
        text = propose(
            Sample(Path("x.csv"), None, frame, True), Path("x"), Hints()
        ).yaml
        settings = yaml.safe_load(text)["data"]["table"]
        return settings["user_id"], settings["ad_id"], unsure(text)

    user, ad, doubts = ids()
    assert (user, ad) == ("alpha", "beta")  # though more users than ads are there
    assert "alpha stands for the user" in doubts and "beta stands for the ad" in doubts
    # A name that is known is not taken for the other side, and `genre` for no user.
    assert ids(alpha="listener")[:2] == ("listener", "beta")
    assert ids(beta="episode")[:2] == ("alpha", "episode")
    assert "stands for" not in ids(alpha="listener", beta="episode")[2]


def test_few_rows_make_some_steps() -> None:
    sizes = {100: 32, 6_000: 64, 16_000: 128, 24_000: 256, 100_000: 256}
    for rows, size in sizes.items():
        frame = pl.DataFrame({"a": np.zeros(rows)})
        assert Sample(Path("x"), None, frame, True).batch_size == size
        assert Sample(Path("x"), None, frame, False).batch_size is None


def test_hints(log: dict[str, object], tmp_path: Path) -> None:
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    hints = Hints(label="purchased", user="area", ad="brand")
    sample = read_sample(tmp_path / "log.csv")
    text = propose(sample, tmp_path / "my.yaml", hints).yaml
    settings = yaml.safe_load(text)["data"]["table"]
    assert settings["labels"]["click"] == {"column": "purchased"}
    assert (settings["user_id"], settings["ad_id"]) == ("area", "brand")


def test_decimal_commas_are_numbers_for_every_question(
    log: dict[str, object], tmp_path: Path
) -> None:
    """As text, "0,00" would be a value, and what tells the click just many ids."""
    clicked = np.asarray(log["clicked"])
    noise = np.random.default_rng(1).random(ROWS)
    rows = {
        **{name: log[name] for name in ("user", "item", "clicked")},
        "dwell": np.where(clicked == 1, noise, 0),
        "quality": clicked + noise,
    }
    numbers = pl.col("dwell", "quality").round(5).cast(pl.String)
    text = pl.DataFrame(rows).with_columns(numbers.str.replace(".", ",", literal=True))
    text.write_csv(tmp_path / "log.csv", separator=";")
    sample = read_sample(tmp_path / "log.csv")
    proposal = propose(sample, tmp_path / "my.yaml", Hints()).yaml
    settings = yaml.safe_load(proposal)["data"]["table"]
    assert settings["labels"]["dwell"]["kind"] == "value"
    assert settings["ignore"] == ["quality"]
    assert "quality predicts the click almost alone" in proposal


def test_points_that_divide_thousands(tmp_path: Path) -> None:
    """Among decimal commas they do; elsewhere nobody can tell, and it is said."""
    shown = [("950", "1.234", "12.000")[i % 3] for i in range(ROWS)]
    rows = {
        "user": np.arange(ROWS) % 50,
        "item": np.arange(ROWS) % 30,
        "clicked": np.arange(ROWS) % 7 // 4,
        "views": shown,
    }
    for price in ("1,50", "1.50"):
        frame = pl.DataFrame({**rows, "price": [price, "3"] * (ROWS // 2)})
        frame.write_csv(tmp_path / "log.csv", separator=";")
        sample = read_sample(tmp_path / "log.csv")
        proposal = propose(sample, tmp_path / "my.yaml", Hints())
        changes = {r.column: r.change for r in proposal.repairs}
        if price == "1,50":
            assert changes["views"]("1.234") == "1234" and "views" in changes
            assert "three digits" not in proposal.yaml
        else:
            assert "views" not in changes
            assert "views: every point stands before three digits" in proposal.yaml
        assert "price: every point" not in proposal.yaml


def test_names_can_be_typed(log: dict[str, object], tmp_path: Path) -> None:
    city = [f"c{int(user) % 3}" for user in np.asarray(log["user"])]
    settings, _ = table({**log, "Straße, Gerät (€)": city, "城市": city}, tmp_path)
    assert settings["user"]["Stra_e_Gerat"]["column"] == "Straße, Gerät (€)"
    assert settings["user"]["c_"]["column"] == "城市"
