"""`adrec init` on the data sets that people bring: what it proposes prepares."""

import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
from conftest import REPOSITORY, criteo_line
from drafts import ROWS, columns, init, unsure


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
    assert "nothing but" not in unsure(text)
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
    assert "nothing but ad_id is known" in unsure(text)
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


def check_other_criteo(path: Path) -> list[str]:
    """Propose for rows whose columns are numbered in another way than Kaggle's."""
    text, data, report = init(path)
    assert data["adapter"] == "criteo" and report["bad_rows"]["count"] == 0
    assert "do not fit these rows, whose user columns give away C14" in text
    return list(data["ad_features"])


def test_criteo_with_columns_of_another_order(tmp_path: Path) -> None:
    """The user's C1 determines C14, and the ad's C15 determines C26."""
    lines = []
    for i in range(ROWS):
        fields = criteo_line(i, i % 3 == 0).split("\t")
        creative = i * i % 31
        for column, value in ((1, i % 11), (14, i % 11 % 4), (15, creative)):
            fields[13 + column] = f"{column:04x}{value:04x}"
        fields[13 + 26] = f"{creative % 5:08x}"
        lines.append("\t".join(fields) + "\n")
    (tmp_path / "day.tsv").write_text("".join(lines))
    ad = check_other_criteo(tmp_path / "day.tsv")
    assert ad == ["C15", "C26"]


def test_criteo_1tb(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "day_0.tsv.gz"
    path.write_bytes((real_data / "criteo_1tb/day_0.part_10000.tsv.gz").read_bytes())
    assert check_other_criteo(path) == ["C2", "C8", "C15", "C26"]


def test_criteo_kaggle(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.tsv"
    path.write_bytes((real_data / "criteo_kaggle/head_8000.tsv").read_bytes())
    _, data, report = init(path)
    assert "ad_features" not in data and report["rows_in"] == 8000
