"""Leaks are measured: dependent sides, columns of the future, repeated rows."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, criteo_line, prepare_criteo
from raw_data import prepare_table
from sklearn.metrics import roc_auc_score

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.column import Chunk, JaggedColumn
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.leaks import (
    Dependency,
    column_aucs,
    dependencies,
    refuse_leaky_sides,
)
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.data.prepare.row_hashes import row_hashes
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Label, Schema, Side, SparseFeature

Columns = Mapping[str, Sequence[int | None]]
SCHEMA = Schema(
    dense=(),
    sparse=(
        SparseFeature(name="u", side=Side.USER, source="u", num_embeddings=6),
        SparseFeature(name="a", side=Side.AD, source="a", num_embeddings=6),
    ),
    labels=(Label(name="click"),),
)


def chunk(columns: Columns, click: list[int] | None = None) -> Chunk:
    rows = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.UInt32))
    label = pl.Series("click", click or [0] * len(rows), dtype=pl.Float32)
    data = DataSet(SCHEMA, (), lambda path, bad: iter(()))
    return Chunk.of(rows.with_columns(label), data, ThreadPoolExecutor(1))


def measure(columns: Columns) -> list[Dependency]:
    rows = chunk(columns)
    return dependencies([(rows, np.ones(rows.num_rows, dtype=bool))], SCHEMA)


def test_by_hand() -> None:
    # u = 1: a is 7 in six of eight rows; u = 2 has too few rows; one u is missing.
    u, a = [*[1] * 8, *[2] * 4, None], [7] * 6 + [8] * 2 + [9] * 5
    rows: Columns = {"u": u, "a": a}
    (pair,) = measure(rows)
    assert (pair.determined, pair.base_rate, pair.rows) == (0.75, 0.75, 8)
    assert not pair.leaks


def test_only_training_rows_are_measured() -> None:
    rows = chunk({"u": [1] * 10 + [2] * 10, "a": [7] * 10 + [8, 9] * 5})
    (pair,) = dependencies([(rows, np.arange(20) < 10)], SCHEMA)
    assert pair.rows == 10


def test_a_column_that_names_the_ad_is_refused() -> None:
    user = [i % 3 for i in range(60)]
    pairs = measure({"u": user, "a": [u + 5 for u in user]})
    with pytest.raises(DataError, match=r"a \(1\.000\); put both ends .* \(here\), or"):
        refuse_leaky_sides(pairs, "here")
    with pytest.raises(DataError, match=r"a \(1\.000\); set data\.allow_leaky_sides"):
        refuse_leaky_sides(pairs)


def test_an_ad_column_that_hardly_varies_is_no_leak() -> None:
    refuse_leaky_sides(measure({"u": [i % 3 for i in range(60)], "a": [1] * 59 + [2]}))


def test_the_auc_of_a_column_is_that_of_its_training_rates() -> None:
    rng = np.random.default_rng(0)
    tally = SplitCounts(SCHEMA)
    rates = np.array([0.2, 0.5, 0.1, 0.4, 0.8, 0.3])
    # Frequent values have low click rates, so an order by frequency would show.
    shares = np.array([0.4, 0.05, 0.25, 0.1, 0.05, 0.15])
    parts = []
    for split in (0, 2):
        ids = rng.choice(6, 30_000, p=shares).astype(np.int32)
        click = (rng.random(30_000) < rates[ids]).astype(np.float32)
        columns = {"u": ids, "a": np.zeros_like(ids), "click": click}
        tally.add(split, columns, np.arange(30_000, dtype=np.uint64), {})
        parts.append((ids, click))
    (train, clicked), (test, label) = parts
    fitted = np.bincount(train, weights=clicked) / np.bincount(train)
    aucs = column_aucs(tally)
    assert aucs["u"] == pytest.approx(roc_auc_score(label, fitted[test]), abs=1e-6)
    assert aucs["a"] == 0.5


def test_a_column_made_of_the_label_is_named(tmp_path: Path) -> None:
    """C1 is the click itself; C4 is the hour, whose test values training never saw."""
    lines = []
    for i in range(3000):
        fields = criteo_line(i * 7, i % 3 == 0, c1=f"{i % 3 == 0:08x}").split("\t")
        fields[17] = f"{i // 150:08x}"
        lines.append("\t".join(fields))
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    report = prepare_criteo(tmp_path / "out", tmp_path / "a.tsv")
    reasons = {f["name"]: f["why"] for f in report["future_columns"]}
    assert reasons == {"C1": "tells the label", "C4": "tells the time"}
    text = (tmp_path / "out/report.md").read_text()
    assert "**C1 predicts the label on its own** (AUC 1.000): will it be known" in text
    assert "**C4 gives the time away** (100.0% of the test rows have a value" in text


def test_equal_rows_have_equal_hashes_and_others_not() -> None:
    rows = chunk({"u": [1, 1, 1, 2, None], "a": [3, 3, 4, 3, 3]}, [0, 0, 0, 0, 0])
    hashes = row_hashes(rows).tolist()
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4
    swapped = row_hashes(chunk({"u": [3], "a": [1]}))[0]
    clicked = row_hashes(chunk({"u": [1], "a": [3]}, [1]))[0]
    assert len({hashes[0], swapped, clicked}) == 3
    # In another chunk the same values have other codes.
    assert row_hashes(chunk({"u": [2, 1], "a": [4, 3]}))[1] == hashes[0]


def test_histories_and_times_count_in_the_hash() -> None:
    histories = [["a", "b"], ["b", "a"], ["a", "b"], ["a"], []]
    column = JaggedColumn.of(pl.Series(histories, dtype=pl.List(pl.String)))
    clicks = {"click": np.zeros(5, dtype=np.float32)}
    hashes = row_hashes(Chunk({"h": column}, clicks, None)).tolist()
    assert hashes[0] == hashes[2] and len(set(hashes)) == 4
    times = row_hashes(Chunk({"h": column}, clicks, np.arange(5)))
    assert len(set(times.tolist())) == 5


def test_rows_in_two_splits_are_counted(tmp_path: Path) -> None:
    def line(i: int) -> str:
        return criteo_line(i, i % 2, c1=f"{i:08x}")

    lines = [line(i) for i in range(100)]
    lines[95], lines[97] = line(3), line(40)
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    report = prepare_criteo(tmp_path / "out", tmp_path / "a.tsv")
    expected = {"compared": 20, "also_in_train": 2, "without": []}
    assert report["rows_in_two_splits"] == expected
    text = (tmp_path / "out/report.md").read_text()
    sentence = "Of 20 held-out rows, 2 are equal to\na training row in every column.\n"
    assert sentence in text


def table_rows(repeats: int) -> pl.DataFrame:
    """A hundred users in turn; the last rows repeat the first ones at other times."""
    rows = np.arange(1000)
    rows[1000 - repeats :] = np.arange(repeats)
    return pl.DataFrame(
        {
            "ts": np.arange(1000) * 10,
            "uid": [f"u{i % 100}" for i in rows],
            "page": [f"p{i % 500}" for i in rows],
            "item": [f"i{i % 499}" for i in rows],
            "click": rows * 7 // 3 % 2,
        }
    )


TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {
        "user": {"column": "uid", "kind": "text"},
        "page": "text",
        "when": {"column": "ts", "kind": "number"},
    },
    "ad": {"item": "text"},
}


@pytest.mark.parametrize(
    ("by", "without"),
    [
        ("time", ["time", "when"]),
        ("random", ["time", "when"]),
        ("user", ["time", "when", "user", "user"]),
    ],
)
def test_rows_equal_but_for_the_columns_of_the_split(
    tmp_path: Path, by: str, without: list[str]
) -> None:
    """The time and the user, also where a feature is made of the same column."""
    rows = table_rows(150)
    if by == "user":  # of another user, and so perhaps in another split
        rows = rows.with_columns(uid="u" + pl.int_range(pl.len()).cast(pl.String))
    report = prepare_table(tmp_path / "a", rows, TABLE, split={"by": by})
    repeats = report["rows_in_two_splits"]
    assert repeats["without"] == without
    if by == "time":
        assert repeats == {"compared": 200, "also_in_train": 150, "without": without}
    else:
        assert repeats["also_in_train"] > 20
    text = (tmp_path / "a/report.md").read_text()
    assert f"every column except {', '.join(without)}." in text


def test_the_hash_of_a_split_knows_the_time(tmp_path: Path) -> None:
    """The time is in the hash, although rows are compared without it."""
    rows = table_rows(0)
    later = rows.with_columns(ts=pl.col("ts") + (pl.col("ts") == 9990))
    table = TABLE | {"user": {"page": "text"}}
    splits = [
        prepare_table(tmp_path / name, some, table)["splits"]
        for name, some in (("a", rows), ("b", later))
    ]
    assert splits[0]["train"]["hash"] == splits[1]["train"]["hash"]
    assert splits[0]["test"]["hash"] != splits[1]["test"]["hash"]


def real(path: Path, ads: tuple[str, ...]) -> dict[tuple[str, str], float]:
    config = load_config(None, [f"data.raw={path}", f"data.ad_features={list(ads)}"])
    data = criteo.open_data(config.data)
    (frame,) = data.read(path, BadRows())
    rows = Chunk.of(frame, data, ThreadPoolExecutor(2))
    pairs = dependencies([(rows, np.ones(rows.num_rows, dtype=bool))], data.schema)
    return {(d.user, d.ad): d.determined for d in pairs}


def test_real_rows(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "criteo_kaggle/train_109711.tsv.gz"
    creative = real(path, ("C2", "C14", "C18"))
    assert [round(creative["C15", ad], 3) for ad in ("C2", "C14", "C18")] == [1, 1, 1]
    assert real(path, ("C12",))["C3", "C12"] == 1
    name = "configs/criteo_kaggle_leaky_sides.yaml"
    split = load_config(REPOSITORY / name, [f"data.raw={path}"])
    with pytest.raises(DataError, match=r"give ad columns away \(.*: C3 -> C1"):
        prepare(split.data, criteo.open_data(split.data), tmp_path)
