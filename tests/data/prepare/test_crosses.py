"""Crosses: pairs across the sides, which no tower reads and validation may refuse."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from statistics_rows import ROWS, TRAIN_ROWS, VALID_ROWS, across, prepare_rows

from torchrec_adrec.config.data import StatisticsConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import batch_columns
from torchrec_adrec.data.prepare.cross_switch import judge_crosses
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.pairs import PairGain, Sample
from torchrec_adrec.data.prepare.statistics import Folds
from torchrec_adrec.data.prepare.value_counts import NO_FOLD
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.errors import SchemaError
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.serve.crosses import Crosses

USER = ("city", "device", "age")


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crosses") / "data"
    report = prepare_rows(out, across(), folds=4, strengths=[10], cross_pairs=2)
    cross = report["statistics"]["cross"]
    assert cross["kept"] and cross["gain"] > 0.05 and cross["rows"] == VALID_ROWS
    assert {(p["first"], p["second"]) for p in cross["pairs"]} >= {("brand", "device")}
    return out


def test_only_the_ranker_reads_them(crossed: Path) -> None:
    schema = Schema.load(crossed / "schema.json")
    names = {feature.name for feature in schema.cross}
    assert "brand.device.click.30" in names
    for side in Side:
        assert not names & set(schema.columns_of(side))
    assert not names & set(batch_columns(schema))
    assert names <= set(batch_columns(schema.joined))
    ad = [feature.name for feature in schema.joined.dense_of(Side.AD)]
    before = [feature.name for feature in schema.dense_of(Side.AD)]
    assert ad == [*before, *(feature.name for feature in schema.cross)]


def test_each_row_sees_what_it_may_see(crossed: Path) -> None:
    """Fails for a row's own fold, and for held-out rows in the totals."""
    raw, statistics = across(), Encoder.load(crossed).statistics
    assert statistics is not None
    name, strength = "brand.device.click.30", 30
    mean, deviation = statistics.scales[name]
    folds = Folds(4, 0).of(0, np.ones(ROWS, dtype=bool))
    splits = (pl.read_parquet(crossed / s / "*.parquet") for s in ("train", "valid"))
    encoded = pl.concat(splits)[name]
    rate = float(raw["click"].head(TRAIN_ROWS).mean() or 0)  # type: ignore[arg-type]
    for row in [*range(0, TRAIN_ROWS, 211), *range(TRAIN_ROWS, 2700, 41)]:
        fold = folds[row] if row < TRAIN_ROWS else -1
        clicks = (
            raw.head(TRAIN_ROWS)
            .filter(pl.Series(folds[:TRAIN_ROWS] != fold))
            .filter(pl.col("brand").eq_missing(raw["brand"][row]))
            .filter(pl.col("device").eq_missing(raw["device"][row]))["click"]
        )
        p = (int(clicks.sum()) + strength * rate) / (len(clicks) + strength)
        expected = (math.log(p / (1 - p)) - mean) / deviation
        assert encoded[row] == pytest.approx(np.clip(expected, -5, 5), abs=1e-4)


def test_a_served_cross_is_the_one_of_the_row(crossed: Path) -> None:
    """Of rows of the test split, looked up from the raw request and the catalog."""
    encoder, catalog = Encoder.load(crossed), load_catalog(crossed)
    crosses = Crosses(encoder, catalog)
    test = pl.read_parquet(crossed / "test/*.parquet")
    raw = across().tail(len(test))
    assert raw["city"].null_count() and raw["age"].null_count()
    ids = catalog[AD_ID].to_numpy()
    some = np.flatnonzero(np.arange(len(test)) % 7 == 0)
    for row in some.tolist():
        user = raw_user({n: raw[n][row] for n in USER}, encoder.schema)
        others = np.searchsorted(ids, test[AD_ID].to_numpy()[[row, *some[:20]]])
        served = crosses.of(user, others)
        for feature in encoder.schema.cross:
            assert served[feature.name][0] == pytest.approx(test[feature.name][row])
    assert len({round(float(x), 4) for x in served["brand.device.click.30"]}) > 3


def test_pairs_that_validation_rows_refute_are_dropped(tmp_path: Path) -> None:
    """Training rows choose them; in later rows the law no longer holds."""
    report = prepare_rows(
        tmp_path / "a", across(holds_until=TRAIN_ROWS), folds=4, cross_pairs=1
    )
    cross = report["statistics"]["cross"]
    assert cross["pairs"][0]["gain"] > 0.1 > 0 > cross["gain"]
    assert not cross["kept"]
    schema = Schema.load(tmp_path / "a/schema.json")
    assert not schema.cross and schema.joined is schema
    assert "brand.device" not in " ".join(load_catalog(tmp_path / "a").columns)
    text = (tmp_path / "a/report.md").read_text()
    assert "1 pairs (brand x device)" in text and ": dropped, for" in text


def test_validation_rows_judge_and_are_not_fitted() -> None:
    """Of a law that is the reverse in validation, which has more rows."""
    draw = np.random.default_rng(0)
    train = np.arange(5000) < 1000
    first, second = draw.integers(0, 2, (2, 5000))
    law = (first != second) == train
    sample = Sample(
        {"brand": first, "device": second},
        np.where(train, np.arange(5000) % 4, NO_FOLD),
        (draw.random(5000) < 0.3 + 0.4 * law).astype(np.float64),
    )
    pair = PairGain(first="brand", second="device", gain=1)
    switch = judge_crosses(sample, [], [pair], StatisticsConfig(folds=4))
    assert switch.rows == 4000 and switch.gain < -10 * switch.error < 0
    assert not switch.is_kept


def test_a_cross_must_join_both_sides(crossed: Path, tmp_path: Path) -> None:
    text = (crossed / "schema.json").read_text()
    wrong = text.replace('"paired_with": "device"', '"paired_with": "price"')
    assert wrong != text
    (tmp_path / "schema.json").write_text(wrong)
    with pytest.raises(SchemaError, match="a cross is a number of the ad"):
        Schema.load(tmp_path / "schema.json")
