"""Lists of ads, lists of one size, and vectors: whose they are, and what."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from drafts import ROWS, columns, histories, init, unsure

from torchrec_adrec.data.inspect.proposal import Hints, propose
from torchrec_adrec.data.inspect.sample import read_sample

WIDTH = 4


def table(rows: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """What is proposed for a Parquet file, without preparing it."""
    pl.DataFrame(rows).write_parquet(folder / "log.parquet")
    sample = read_sample(folder / "log.parquet")
    text = propose(sample, folder / "my.yaml", Hints()).yaml
    return yaml.safe_load(text)["data"]["table"], text


def test_ads_of_before_are_the_users_whatever_their_name_says(tmp_path: Path) -> None:
    """On the ad's side, the catalog would hold what one user had seen last."""
    picked = columns()
    lists = histories(picked)
    rows = {
        **picked,
        "seen item": [" ".join(items) for items in lists],
        "last_item": [items[-1] if items else None for items in lists],
    }
    settings, text = table(rows, tmp_path)
    assert settings["ad"] == {"item": "text"}
    block = {"column": "seen item", "kind": "sequence", "shares_ids_with": "item"}
    assert settings["user"]["seen_item"] == block
    assert settings["user"]["last_item"] == "text"
    assert "last_item: it holds ads, and must be known before its row" in unsure(text)
    assert "seen item must hold only what came before its row" in unsure(text)


def test_what_varies_within_an_ad_is_named(tmp_path: Path) -> None:
    picked = columns()
    by_user = [f"t{user}" for user in picked["user"]]
    settings, text = table({**picked, "item_place": by_user[::-1]}, tmp_path)
    assert "item_place" in settings["ad"]
    assert "item_place: it sounds like the ad's, but varies within one" in unsure(text)


def vectors() -> list[list[float]]:
    """One of each item, for every row."""
    table = np.random.default_rng(1).normal(size=(15, WIDTH)).round(3)
    return [table[item].tolist() for item in columns()["item"]]


def test_lists_of_one_size_in_parquet(tmp_path: Path) -> None:
    """Vectors, if they hold fractions, else ids; many integers may be either."""
    picked, item = columns(), columns()["item"]
    three = np.array([([0] * 3 + list(map(int, v)))[-3:] for v in histories(picked)])
    many = (item[:, None] * np.arange(1, 33)) % 101
    rows = {
        "user": picked["user"].astype(float),  # has to be rewritten
        "item": item,
        "clicked": picked["clicked"],
        "image": pl.Series(vectors(), dtype=pl.Array(pl.Float32, WIDTH)),
        "pixels": pl.Series(many, dtype=pl.Array(pl.UInt8, 32)),
        "last_three": pl.Series(three, dtype=pl.Array(pl.Int64, 3)),
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    text, data, report = init(tmp_path / "log.parquet")
    block = {"kind": "sequence", "shares_ids_with": "item"}
    assert data["table"]["user"]["last_three"] == block
    assert data["table"]["ad"]["image"] == "vector"
    assert data["table"]["ad"]["pixels"] == "vector" and "ignore" not in data["table"]
    assert "pixels is taken for a vector, as all of its lists have 32" in unsure(text)
    assert report["rows_in"] == ROWS and report["bad_rows"]["count"] == 0


@pytest.mark.parametrize("form", ["{}", "[{}]"])
@pytest.mark.parametrize("sign", [" ", ", "])
def test_vectors_as_text(form: str, sign: str, tmp_path: Path) -> None:
    """Each number would else be an id."""
    lists = [form.format(sign.join(map(str, vector))) for vector in vectors()]
    lists[3] = "?"
    pl.DataFrame({**columns(), "image": lists}).write_csv(tmp_path / "log.csv")
    sample = read_sample(tmp_path / "log.csv")
    proposal = propose(sample, tmp_path / "my.yaml", Hints())
    block = yaml.safe_load(proposal.yaml)["data"]["table"]["ad"]["image"]
    separator = "|" if "[" in form else sign.strip()
    expected = {"separator": separator} if separator else {}
    assert block == ({**expected, "kind": "vector"} if expected else "vector")
    assert [r.column for r in proposal.repairs] == ["image"] * ("[" in form)
