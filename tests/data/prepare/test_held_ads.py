"""User columns that hold the ad of their own row are measured and refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_data import prepare_table

from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare import leaks
from torchrec_adrec.data.prepare.held_ads import HeldAd, held_ads, refuse_held_ads
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Label, Schema, SequenceFeature, Side, SparseFeature

SCHEMA = Schema(
    dense=(),
    sparse=(
        SparseFeature(name="u", side=Side.USER, source="u", kind="text"),
        SparseFeature(name="a", side=Side.AD, source="a", kind="text"),
        SparseFeature(name="h", side=Side.AD, source="h", kind="hex"),
    ),
    sequences=(SequenceFeature(name="seen", side=Side.USER, source="s", max_length=3),),
    labels=(Label(name="click"),),
)
ROWS = 1000


def chunk(
    ads: list[str | None], histories: list[list[str]], users: list[str] | None = None
) -> Chunk:
    rows = pl.DataFrame(
        {
            "u": users or ["x"] * len(ads),
            "a": ads,
            "h": [171] * len(ads),
            "s": histories,
            "click": [0] * len(ads),
        },
        schema={
            "u": pl.String,
            "a": pl.String,
            "h": pl.UInt32,
            "s": pl.List(pl.String),
            "click": pl.Float32,
        },
    )
    data = DataSet(SCHEMA, (), lambda path, bad: iter(()))
    return Chunk.of(rows, data, ThreadPoolExecutor(1))


def measure(*chunks: Chunk) -> dict[tuple[str, str], HeldAd]:
    held = held_ads([(c, np.ones(c.num_rows, dtype=bool)) for c in chunks], SCHEMA)
    return {(f"{h.user}: {h.place}", h.ad): h for h in held}


def test_by_hand() -> None:
    histories = [["b", "a"], ["a", "b", "b"], ["c"], [], ["a"], ["a", "x", "y", "z"]]
    ads = ["a", "a", "b", "a", None, "a"]
    whole = measure(chunk(ads, histories))
    last, anywhere = (whole[f"seen: {p} item", "a"] for p in ("last", "any"))
    # Four rows have items and an ad; of the last row the model sees x, y and z.
    assert (last.rows, last.held, anywhere.held) == (4, 1 / 4, 2 / 4)
    # Among them the ads are a, a, b, a: 3/4 are "a" and 1/4 "b".
    assert last.base_rate == (3 + 1 + 0 + 0) / 16
    assert anywhere.base_rate == (4 + 4 + 0 + 0) / 16
    assert (
        measure(chunk(ads[:2], histories[:2]), chunk(ads[2:], histories[2:])) == whole
    )
    assert measure(chunk(["a"] * 3, [[]] * 3))["seen: any item", "a"].rows == 0


def test_a_hash_is_found_as_text() -> None:
    held = measure(chunk(["a"] * 8, [["000000ab"]] * 8))
    assert held["seen: any item", "h"].held == 1
    assert held["seen: any item", "a"].held == 0


def test_only_training_rows_are_measured() -> None:
    rows = chunk(["a", "b"] * 10, [["a"], ["z"]] * 10)
    (first, *_) = held_ads([(rows, np.arange(20) % 2 == 0)], SCHEMA)
    assert (first.rows, first.held) == (10, 1)


def test_a_column_whose_ads_are_too_rare_to_be_determined() -> None:
    """Each ad has one row only, and `leaks` uses values of at least five rows."""
    ads: list[str | None] = [f"ad {i}" for i in range(ROWS)]
    rows = chunk(ads, [[]] * ROWS, [f"ad {i}" for i in range(ROWS)])
    held_ad = measure(rows)["u: value", "a"]
    assert (held_ad.held, held_ad.base_rate, held_ad.rows) == (1, 1 / ROWS, ROWS)
    with pytest.raises(DataError, match=r"u \(value\) -> a \(1\.000, by chance 0\.001"):
        refuse_held_ads([held_ad])
    assert not any(
        d.leaks
        for d in leaks.dependencies([(rows, np.ones(ROWS, dtype=bool))], SCHEMA)
        if d.ad == "a"
    )


def test_a_history_of_every_ad_is_no_leak() -> None:
    rows = chunk(["a", "b", "c"] * 20, [["a", "b", "c"]] * 60)
    held_ad = measure(rows)["seen: any item", "a"]
    assert (held_ad.held, held_ad.base_rate) == (1, 1) and not held_ad.leaks


TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user": {
        "uid": "text",
        "seen": {"kind": "sequence", "max_length": 5, "separator": "|"},
    },
    "ad": {"item": "text"},
}


def table_rows(place: str, share: float) -> pl.DataFrame:
    """Histories of four items; a share of the rows has its own ad at some place."""
    rng = np.random.default_rng(0)
    ads = rng.integers(40, size=ROWS)
    histories = rng.integers(40, size=(ROWS, 4))
    leaky = rng.random(ROWS) < share
    histories[leaky, {"first": 0, "last": 3}[place]] = ads[leaky]
    return pl.DataFrame(
        {
            "ts": np.arange(ROWS),
            "uid": [f"u{i}" for i in rng.integers(50, size=ROWS)],
            "item": ads.astype(str),
            "seen": ["|".join(map(str, row)) for row in histories],
            "click": rng.integers(2, size=ROWS),
        }
    )


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("shares", [None, "item"])
def test_a_history_with_its_own_ad_is_refused(
    tmp_path: Path, place: str, shares: str | None
) -> None:
    sequence = TABLE["user"]["seen"] | ({"shares_ids_with": shares} if shares else {})
    table = TABLE | {"user": TABLE["user"] | {"seen": sequence}}
    rows = table_rows(place, 0.99)
    where = "seen .any item. -> item" if place == "first" else "seen .last item. ->"
    with pytest.raises(DataError, match=where + r".*data\.allow_leaky_sides"):
        prepare_table(tmp_path / "a", rows, table)
    report = prepare_table(tmp_path / "b", rows, table, allow_leaky_sides=True)
    actual = {h["place"]: h for h in report["held_ads"]}["any item"]
    train = rows.head(800)["item", "seen"].iter_rows()
    expected = np.mean([item in history.split("|") for item, history in train])
    assert actual["held"] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < actual["base_rate"] < 0.15
    text = (tmp_path / "b/report.md").read_text()
    assert f"| seen | any item | item | {expected:.3f} |" in text


def test_a_history_that_holds_it_in_half_of_the_rows_is_only_reported(
    tmp_path: Path,
) -> None:
    report = prepare_table(tmp_path / "a", table_rows("last", 0.5), TABLE)
    held = {h["place"]: h["held"] for h in report["held_ads"]}
    assert 0.4 < held["last item"] < held["any item"] < 0.7


def test_a_last_item_that_names_the_ad_in_another_way_is_refused(
    tmp_path: Path,
) -> None:
    rows = table_rows("last", 1).with_columns(
        seen=pl.col("seen").str.replace(r"([0-9]+)$", "number $1")
    )
    with pytest.raises(DataError, match=r"seen \(last item\) -> item \(1\.000\)"):
        prepare_table(tmp_path / "a", rows, TABLE)
