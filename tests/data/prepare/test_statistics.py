"""Statistics of values: no row sees its own label, and no held-out row is counted."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import adrec, criteo_line, on_ranks, prepare_criteo
from sklearn.metrics import roc_auc_score
from statistics_rows import (
    ROWS,
    SCALARS,
    TRAIN_ROWS,
    VALID_ROWS,
    prepare_rows,
    raw_rows,
)

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.statistics import Folds
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.schema import AD_ID, Schema, Side


def split_of(out: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(out / f"{name}/*.parquet")


def all_rows(out: Path) -> pl.DataFrame:
    return pl.concat(split_of(out, name) for name in ("train", "valid", "test"))


Count = Callable[[int, str, tuple[str, ...]], tuple[int, int]]


def counted_by_hand(rows: pl.DataFrame, encoder: Encoder, min_count: int) -> Count:
    """Count what a row may see, row by row, from the raw values alone."""
    statistics = encoder.statistics
    assert statistics is not None
    folds = Folds(4, 0).of(0, np.ones(ROWS, dtype=bool))
    ages = statistics.keys.quantiles["age"]
    keyed = {name: rows[name].to_list() for name in ("city", "device", "brand")}
    for name in ("age", "price"):
        quantiles = statistics.keys.quantiles[name]
        keyed[name] = [
            None if x is None else int(quantiles.bucket(np.array([float(x)]))[0])
            for x in rows[name]
        ]
    assert len(ages.edges) <= 32

    def count(row: int, label: str, sources: tuple[str, ...]) -> tuple[int, int]:
        value = tuple(keyed[name][row] for name in sources)
        same = [
            other
            for other in range(TRAIN_ROWS)
            if tuple(keyed[name][other] for name in sources) == value
        ]
        if len(same) < min_count:
            return 0, 0
        if row < TRAIN_ROWS:
            same = [other for other in same if folds[other] != folds[row]]
        labels = [x for x in rows[label].gather(same).to_list() if x is not None]
        return len(labels), sum(labels)

    return count


def test_every_row_sees_what_it_may_see_counted_by_hand(prepared_rows: Path) -> None:
    """Fails for a row's own fold, for held-out rows in the totals, for lost NaNs."""
    raw, encoder = raw_rows(), Encoder.load(prepared_rows)
    statistics = encoder.statistics
    assert statistics is not None
    rows, count = all_rows(prepared_rows), counted_by_hand(raw, encoder, min_count=2)
    rates = {name: raw[name].head(TRAIN_ROWS).mean() for name in ("click", "buy")}
    features = [f for f in encoder.schema.dense if f.statistic is not None]
    assert {f.statistic.label for f in features if f.statistic} == {"click", "buy"}
    sample = [*range(0, TRAIN_ROWS, 97), *range(TRAIN_ROWS, ROWS, 41)]
    for feature in features:
        mean, deviation = statistics.scales[feature.name]
        statistic = feature.statistic
        assert statistic is not None
        strength, rate = statistic.strength, rates[statistic.label]
        assert isinstance(rate, float)
        for row in sample:
            observed, positive = count(row, statistic.label, feature.sources)
            value = math.log1p(observed)
            if strength is not None:
                p = (positive + strength * rate) / (observed + strength)
                value = math.log(p / (1 - p))
            expected = min(max((value - mean) / deviation, -5), 5)
            actual = rows[feature.name][row]
            assert actual == pytest.approx(expected, abs=1e-4), (feature.name, row)


def test_the_features_stand_on_their_side_under_their_names(
    prepared_rows: Path,
) -> None:
    schema = Schema.load(prepared_rows / "schema.json")
    for side in Side:
        names = {f.name for f in schema.statistics_of(side) if len(f.sources) == 1}
        assert names == {
            f"{source}.{label}.{kind}"
            for source in SCALARS[side]
            for label in ("click", "buy")
            for kind in ("10", "count")
        }
        assert set(schema.sources_of(side)) == set(SCALARS[side])


def test_training_values_are_standardised_and_clipped(prepared_rows: Path) -> None:
    schema = Schema.load(prepared_rows / "schema.json")
    train, rows = split_of(prepared_rows, "train"), all_rows(prepared_rows)
    for side in Side:
        for feature in schema.statistics_of(side):
            values = train[feature.name].to_numpy().astype(np.float64)
            assert abs(values.mean()) < 0.05, feature.name
            assert 0.8 < values.std() < 1.05, feature.name
            assert np.abs(rows[feature.name].to_numpy()).max() <= 5


@pytest.mark.parametrize("min_count", [1, 2])
def test_a_random_column_does_not_tell_a_training_row_its_label(
    tmp_path: Path, min_count: int
) -> None:
    """Seen with its own label, such a column has an AUC of about 0.9."""
    prepare_rows(tmp_path / "a", raw_rows(), min_count=min_count)
    train = split_of(tmp_path / "a", "train")
    for name in ("city.click.10", "city.click.100", "city.click.count"):
        auc = roc_auc_score(train["click"].to_numpy(), train[name].to_numpy())
        assert abs(auc - 0.5) < 0.06, (name, auc)


def test_equal_columns_have_equal_statistics(tmp_path: Path) -> None:
    """Fails when each column draws folds of its own."""
    rows = raw_rows().with_columns(device="city")
    prepare_rows(tmp_path / "a", rows)
    train = split_of(tmp_path / "a", "train")
    for kind in ("10", "100", "count"):
        assert train[f"city.click.{kind}"].equals(train[f"device.click.{kind}"])


def test_served_users_and_ads_have_the_values_of_the_test_rows(
    prepared_rows: Path,
) -> None:
    encoder, raw = Encoder.load(prepared_rows), raw_rows()
    test = split_of(prepared_rows, "test")
    for row in range(0, 300, 13):
        user = raw.select(SCALARS["user"]).row(
            TRAIN_ROWS + VALID_ROWS + row, named=True
        )
        encoded = encoder.encode(raw_user(user, encoder.schema), Side.USER)
        stored = test.row(row, named=True)
        for name, values in encoded.items():
            assert values[0] == pytest.approx(stored[name], abs=1e-6), name
    ads = test.join(load_catalog(prepared_rows), on=AD_ID, suffix=":catalog")
    assert len(ads) == len(test)
    for feature in encoder.schema.statistics_of(Side.AD):
        assert np.allclose(ads[feature.name], ads[f"{feature.name}:catalog"])


def test_missing_and_unseen_values(prepared_rows: Path) -> None:
    """A missing value has counts of its own, an unseen one has none."""
    encoder, raw = Encoder.load(prepared_rows), raw_rows().head(TRAIN_ROWS)
    statistics = encoder.statistics
    assert statistics is not None

    def served(city: str | None) -> float:
        user = raw_user({"city": city}, encoder.schema)
        values = encoder.encode(user, Side.USER)
        mean, deviation = statistics.scales["city.click.count"]
        return float(values["city.click.count"][0]) * deviation + mean

    # The clip bounds what can be read back of a frequent value.
    mean, deviation = statistics.scales["city.click.count"]
    most = mean + 5 * deviation
    missing = math.log1p(raw["city"].null_count())
    assert served("nowhere") == pytest.approx(0, abs=1e-5)
    assert served(None) == pytest.approx(min(missing, most), rel=1e-5)


def test_a_number_that_is_not_finite_is_a_missing_one(tmp_path: Path) -> None:
    lines = [criteo_line(i, i % 3 == 0) for i in range(400)]
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv", statistics={})
    encoder = Encoder.load(tmp_path / "out")
    assert encoder.statistics is not None
    raw = raw_user({"I1": 1}, encoder.schema)
    endless = dict(raw) | {"I1": raw["I1"].__class__.of(pl.Series([math.inf]))}
    missing = dict(raw) | {
        "I1": raw["I1"].__class__.of(pl.Series([None], dtype=pl.Float64))
    }
    keys = encoder.statistics.keys
    a, b = (keys.of(columns, [("I1",)])[("I1",)] for columns in (endless, missing))
    assert a.keys[a.codes].tolist() == b.keys[b.codes].tolist() == [-1]


def test_a_column_of_one_value_is_not_blown_up(tmp_path: Path) -> None:
    """Only chance sets its folds apart, and every fold knows its own labels by it."""
    rows = raw_rows().with_columns(device=pl.lit("d"))
    prepare_rows(tmp_path / "a", rows)
    train = split_of(tmp_path / "a", "train")
    assert np.abs(train["device.click.10"].to_numpy()).max() < 0.1


def test_changed_statistics_are_refused(prepared_rows: Path, tmp_path: Path) -> None:
    prepare_rows(tmp_path / "a", raw_rows())
    path = tmp_path / "a/statistics/brand.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("click:sum") + 1).write_parquet(path)
    with pytest.raises(ManifestError, match=r"statistics/brand\.parquet: expected sha"):
        Encoder.load(tmp_path / "a")


def test_without_statistics_nothing_tells_of_them(prepared: Path) -> None:
    """The fingerprint stays that of data that were prepared before there were any."""
    assert "statistic" not in (prepared / "schema.json").read_text()
    assert "statistics" not in json.loads((prepared / "report.json").read_text())
    assert not (prepared / "statistics").exists()


def write_files(folder: Path) -> list[Path]:
    """Three files of rows whose clicks depend on a pair of the user's columns."""
    lines = [
        criteo_line(i, (i % 5 > 2) != (i % 11 > 5), c1=f"{i % 601:08x}")
        for i in range(9000)
    ]
    paths = []
    for number, start in enumerate((0, 4000, 5000)):
        end = (4000, 5000, 9000)[number]
        paths.append(folder / f"day_{number}.tsv")
        paths[-1].write_text("\n".join(lines[start:end]) + "\n")
    (folder / "whole.tsv").write_text("\n".join(lines) + "\n")
    return paths


def test_files_and_chunks_do_not_change_statistics(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    settings: dict[str, Any] = {"statistics": {"pairs": 2}}
    prepare_criteo(tmp_path / "one", tmp_path / "whole.tsv", **settings)
    prepare_criteo(tmp_path / "two", *paths, chunk_megabytes=1, **settings)
    assert all_rows(tmp_path / "one").equals(all_rows(tmp_path / "two"))
    hashes = [(tmp_path / n / "hashes.json").read_bytes() for n in ("one", "two")]
    assert hashes[0] == hashes[1] and b"+" in hashes[0]


def test_ranks_do_not_change_statistics(tmp_path: Path) -> None:
    """Three files on one rank and on two gloo ranks: the same bytes."""
    write_files(tmp_path)
    args = [f"data.raw={tmp_path}/day_*.tsv", "data.statistics={pairs: 2}"]
    args += ["data.min_count=2"]
    assert adrec("prepare", *args, "--out", tmp_path / "one").returncode == 0
    process = on_ranks(2, "prepare", *args, "--out", tmp_path / "two")
    assert process.returncode == 0, process.stderr
    paths = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*")]
    kept = [p for p in paths if p.suffix in (".parquet", ".json", ".md")]
    assert any("+" in path.name for path in kept)
    for path in kept:
        if path.name != "stage.json":
            expected = (tmp_path / "one" / path).read_bytes()
            assert (tmp_path / "two" / path).read_bytes() == expected, path
