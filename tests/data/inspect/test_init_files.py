"""`adrec init` on files of many kinds: what it proposes loads, and prepares."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import REPOSITORY, criteo_line
from typer.testing import CliRunner

from torchrec_adrec.cli import app as cli
from torchrec_adrec.cli.init import _summary
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import AdRecError, ConfigError, DataError
from torchrec_adrec.runtime.ranks import SingleProcess

ROWS = 600


def init(path: Path, *options: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Propose, load and prepare; returns the YAML, its settings and the report."""
    settings = path.parent / "my.yaml"
    done = CliRunner().invoke(
        cli.app, ["init", str(path), "--to", str(settings), *options]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    config = load_config(settings).data
    out = path.parent / "out"
    out.mkdir()
    data = open_data(config, 0, out, SingleProcess())
    prepare(config, data, out)
    text = settings.read_text()
    report = json.loads((out / "report.json").read_text())
    return text, yaml.safe_load(text)["data"], report


def columns(rows: int = ROWS) -> dict[str, Any]:
    """Users, items and clicks in time order, as numbers."""
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(40, size=rows),
        "item": rng.integers(15, size=rows),
        "clicked": rng.integers(2, size=rows),
    }


def histories(rows: dict[str, Any]) -> list[list[str]]:
    """The items that each row's user clicked before it, the latest last."""
    clicked: dict[int, list[str]] = {}
    lists = []
    for user, item, click in zip(*rows.values(), strict=True):
        taken_before = clicked.setdefault(int(user), [])
        lists.append(taken_before[-3:])
        if click:
            taken_before.append(str(item))
    return lists


def unsure(text: str) -> str:
    """The sentences of doubt at the top of a YAML."""
    return text.partition("# Look at these first:")[2].partition("data:")[0]


def test_the_shop_of_the_guide(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/own_data.md").read_text()
    shop = re.search(r"```csv\n(.*?)```", page, re.DOTALL)
    assert shop is not None
    (tmp_path / "shop.csv").write_text(shop[1])
    text, data, report = init(tmp_path / "shop.csv")
    table = data["table"]
    assert table["labels"]["click"] == {"column": "clicked"}
    assert table["labels"]["revenue"] == {"kind": "value", "max_value": 250.0}
    assert (table["time"], table["user_id"], table["ad_id"]) == ("ts", "uid", "ad_id")
    assert table["user"]["country"] == "text" and table["user"]["age"] == "number"
    assert table["user"]["seen"] == {"kind": "sequence", "shares_ids_with": "ad"}
    assert table["ad"]["ad"] == {"column": "ad_id", "kind": "text"}
    assert table["ad"]["campaign"] == "text" and table["ad"]["price"] == "number"
    assert table["ignore"] == ["session"]
    assert "seen must hold only what came before" in unsure(text)
    assert report["rows_in"] == 5 and report["bad_rows"]["count"] == 0


def check_ratings(path: Path) -> None:
    text, data, report = init(path)
    table = data["table"]
    assert data["raw"] == [str(path)]  # read as it is
    assert table["labels"]["click"] == {"column": "rating", "at_least": 4.0}
    assert table["labels"]["rating"] == {"kind": "value", "max_value": 5.0}
    assert table["time"] == {"column": "timestamp", "kind": "number"}
    assert "seconds since 1970" in text
    assert (table["user_id"], table["ad_id"]) == ("userId", "movieId")
    assert "rating: 4 or more of 5" in unsure(text)
    rated = pl.read_csv(path, infer_schema_length=None)["rating"]
    splits = report["splits"].values()
    clicks = sum(split["rows"] * split["label_rate"]["click"] for split in splits)
    assert round(clicks) == (rated >= 4).sum()
    assert report["bad_rows"]["count"] == 0


def test_ratings_as_of_movielens(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    picked = columns()
    ratings = {
        "userId": picked["user"],
        "movieId": picked["item"],
        "rating": rng.integers(1, 11, size=ROWS) / 2,
        "timestamp": 828_124_615 + 1000 * np.arange(ROWS),
    }
    pl.DataFrame(ratings).write_csv(tmp_path / "ratings.csv")
    check_ratings(tmp_path / "ratings.csv")


def test_movielens(real_data: Path, tmp_path: Path) -> None:
    lines = (real_data / "movielens_latest_small/ratings.csv").read_text().splitlines()
    (tmp_path / "ratings.csv").write_text("\n".join(lines[:5001]) + "\n")
    check_ratings(tmp_path / "ratings.csv")


def check_outbrain(path: Path) -> None:
    text, data, report = init(path)
    assert data["raw"] == [str(path)]  # read as it is
    table = data["table"]
    assert table["labels"] == {"click": {"column": "clicked"}}
    assert (table["user_id"], table["ad_id"]) == ("display_id", "ad_id")
    assert "display_id stands for the user" in unsure(text)
    assert "No column is a time" in unsure(text)
    assert report["bad_rows"]["count"] == 0


def test_rows_as_of_outbrain(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = {
        "display_id": 10_000_000 + np.arange(ROWS) // 2 * 31,
        "ad_id": 81_182 + 97 * rng.integers(300, size=ROWS),
        "clicked": np.arange(ROWS) % 2,
    }
    text = pl.DataFrame(rows).write_csv()
    (tmp_path / "clicks_train.csv.gz").write_bytes(gzip.compress(text.encode()))
    check_outbrain(tmp_path / "clicks_train.csv.gz")


def test_outbrain(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "clicks_train.csv.gz"
    path.write_bytes((real_data / "outbrain_sample/clicks_train.csv.gz").read_bytes())
    check_outbrain(path)


def test_criteo(tmp_path: Path) -> None:
    path = tmp_path / "day.tsv"
    path.write_text("".join(criteo_line(i, i % 3 == 0) + "\n" for i in range(ROWS)))
    text, data, report = init(path)
    assert data == {"adapter": "criteo", "raw": [str(path)]}
    assert report["rows_in"] == ROWS and "data.ad_features" in text


def test_semicolons_in_latin_1_with_decimal_commas(tmp_path: Path) -> None:
    picked = columns()
    lines = ["kunde;artikel;datum;preis;stadt;geklickt"]
    for i in range(ROWS):
        user, item = picked["user"][i], picked["item"][i]
        day = f"{1 + i // 60:02}.05.2024 {i // 60 % 24:02}:{i % 60:02}"
        city = ("Köln", "Zürich")[user % 2]
        click = ("nein", "ja")[picked["clicked"][i]]
        lines.append(f"k{user};0{item};{day};1.{100 + item},50;{city};{click}")
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("latin-1"))
    text, data, report = init(tmp_path / "log.csv")
    table = data["table"]
    assert table["labels"]["click"] == {"column": "geklickt"}
    assert (table["user_id"], table["ad_id"]) == ("kunde", "artikel")
    assert table["ad"] == {"artikel": "text", "preis": "number"}
    assert table["user"] == {"kunde": "text", "stadt": "text"}
    assert table["time"] == "datum" and report["bad_rows"]["count"] == 0
    for change in ("semicolons become commas", "latin-1 becomes UTF-8", "ISO"):
        assert change in text
    row = pl.read_csv(data["raw"][0], infer_schema=False).row(61, named=True)
    user, item = picked["user"][61], picked["item"][61]
    assert row["datum"] == "2024-05-02 01:01:00"
    assert row["preis"] == f"1{100 + item}.50" and row["artikel"] == f"0{item}"
    assert row["stadt"] == ("Köln", "Zürich")[user % 2]
    assert row["geklickt"] == str(picked["clicked"][61])


def test_latin_1_alone_is_rewritten(tmp_path: Path) -> None:
    lines = ["user,item,clicked,city"]
    rows = zip(*columns().values(), strict=True)
    lines += [f"{user},{item},{click},Köln" for user, item, click in rows]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("latin-1"))
    text, data, report = init(tmp_path / "log.csv")
    assert data["raw"] == [str(tmp_path / "my.rewritten.csv")]
    assert "latin-1 becomes UTF-8" in text and report["bad_rows"]["count"] == 0


@pytest.mark.parametrize(
    ("sign", "quote"), [(", ", "'"), (",", '"'), (" ", "")], ids=str
)
def test_lists_as_programs_print_them(sign: str, quote: str, tmp_path: Path) -> None:
    picked = columns()
    lists = histories(picked)
    printed = [f"[{sign.join(f'{quote}{i}{quote}' for i in items)}]" for items in lists]
    rows = pl.DataFrame({**picked, "history": printed})
    rows.write_csv(tmp_path / "log.csv")
    text, data, report = init(tmp_path / "log.csv")
    block = data["table"]["user"]["history"]
    assert block == {"kind": "sequence", "separator": "|", "shares_ids_with": "item"}
    assert report["bad_rows"]["count"] == 0
    rewritten = pl.read_csv(data["raw"][0], infer_schema=False)
    assert rewritten["history"].fill_null("").to_list() == ["|".join(v) for v in lists]
    assert "history must hold only what came before" in unsure(text)


def test_a_device_of_two_kinds_is_no_user(tmp_path: Path) -> None:
    """The column that names the user has a name of two words."""
    picked = columns()
    devices = [("ios", "android")[int(user) % 2] for user in picked["user"]]
    rows = {
        "device": devices,
        "session_user": picked["user"],
        "shown_item": picked["item"],
        "price": picked["item"] * 1.5,
        "clicked": picked["clicked"],
    }
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv", separator=";")
    text, data, _ = init(tmp_path / "log.csv")
    table = data["table"]
    assert (table["user_id"], table["ad_id"]) == ("session_user", "shown_item")
    assert table["user"]["device"] == "text"
    assert "session_user stands for the user by the end of its name" in unsure(text)
    # What is said of the copy's separator is said of the copy.
    assert "# commas, UTF-8" in text and "semicolons become commas" in text


def test_parquet_with_lists_times_and_ids_as_floats(tmp_path: Path) -> None:
    picked = columns()
    times = pl.Series(1_714_000_000_000 + 1000 * np.arange(ROWS))
    rows = pl.DataFrame(
        {
            "user_id": picked["user"].astype(float),
            "item_id": picked["item"],
            "tags": [[f"t{item % 3}"] for item in picked["item"]],
            "seen": [[int(i) for i in items] for items in histories(picked)],
            "at": times.cast(pl.Datetime("ms")),
            "clicked": picked["clicked"].astype(bool),
        }
    )
    rows.write_parquet(tmp_path / "log.parquet")
    text, data, report = init(tmp_path / "log.parquet")
    assert data["table"]["user_id"] == "user_id" and data["table"]["time"] == "at"
    assert data["table"]["user"]["seen"]["shares_ids_with"] == "item_id"
    assert data["table"]["ad"]["tags"] == "list" and "ignore" not in data["table"]
    assert "user_id: ids such as 7.0 become 7" in text
    assert report["bad_rows"]["count"] == 0
    users = pl.read_parquet(data["raw"][0])["user_id"]
    assert users.to_list() == [str(user) for user in picked["user"]]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    pl.DataFrame(columns()).write_csv(tmp_path / "log.csv", separator=";")
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"my\.yaml exists already"):
        init(tmp_path / "log.csv")
    assert (tmp_path / "my.yaml").read_text() == "mine"
    (tmp_path / "my.yaml").unlink()
    (tmp_path / "my.rewritten.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"my\.rewritten\.csv exists already"):
        init(tmp_path / "log.csv")
    assert not (tmp_path / "my.yaml").exists()
    assert (tmp_path / "my.rewritten.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "empty file"),
        ("a\n1\n", DataError, "one column"),
        ("user,item,clicked\n", DataError, "none below the header"),
        ("user,item\n1,2\n1,3\n", DataError, "rows that are all clicks"),
        ("user,user\na,b\n", DataError, "stand there twice"),
    ],
)
def test_what_cannot_be_proposed_is_said(
    text: str, error: type[AdRecError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(error, match=message):
        init(tmp_path / "log.csv")


def test_try_prepares_the_first_rows(tmp_path: Path) -> None:
    rows = pl.DataFrame({**columns(), "ts": np.arange(ROWS)})
    rows.write_csv(tmp_path / "log.csv")
    args = ["init", str(tmp_path / "log.csv"), "--to", str(tmp_path / "my.yaml")]
    done = CliRunner().invoke(cli.app, [*args, "--try"])
    assert done.exit_code == 0, done.output
    assert "600 rows were read, 0 of them bad" in done.output
    assert "AUC alone" not in done.output
    assert f"adrec run --config {tmp_path / 'my.yaml'}" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"log.csv", "my.yaml"}


def test_an_ad_has_sets_and_vectors(tmp_path: Path) -> None:
    """With its own limit, where the first rows need more than the usual one."""
    picked = columns()
    kinds = [[f"k{(i * k) % 31}" for k in range(1, 3 + 2 * i)] for i in range(15)]
    texts = ["|".join(kinds[item]) for item in picked["item"]]
    images = pl.Series([[item * 0.5, 1.0] for item in picked["item"]])
    rows = pl.DataFrame({**picked, "item_tags": texts, "item_image": images})
    rows.write_parquet(tmp_path / "log.parquet")
    _, data, report = init(tmp_path / "log.parquet")
    block = data["table"]["ad"]["item_tags"]
    assert data["table"]["ad"]["item_image"] == "vector"
    assert block["kind"] == "list" and block["separator"] == "|"
    longest = max(len(set(text.split("|"))) for text in texts)
    assert block.get("max_length", 20) >= longest
    assert report["bad_rows"]["count"] == 0


def test_a_report_without_oddities_is_told_as_that() -> None:
    table = "# The data\n\n9 rows\n\n![the data](report.png)\n"
    assert _summary(f"{table}\n## Columns\n\nall") == "9 rows\n\nNothing looks odd."
    odd = f"{table}\n## Look at these\n\n- odd\n\n## Columns\n\nall"
    assert _summary(odd) == "9 rows\n\n- odd"
