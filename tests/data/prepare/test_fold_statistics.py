"""Statistics of a training row's user with any ad, as the row's own fold sees them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from statistics_rows import TRAIN_ROWS, across, prepare_rows

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.fold_statistics import (
    FOLD,
    encode_in_fold,
    fold_statistics,
)
from torchrec_adrec.data.prepare.value_counts import NO_FOLD
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import AD_ID, Schema, Side

STATISTICS = {"folds": 4, "strengths": [10], "pairs": 3, "cross_pairs": 2}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "data"
    prepare_rows(out, across(), keep_folds=True, **STATISTICS)
    return out


def test_a_row_s_own_ad_has_the_numbers_of_the_row(kept: Path) -> None:
    """Fails for the totals, for another row's fold, and for keys of other values."""
    schema = Schema.load(kept / "schema.json")
    statistics = fold_statistics(kept, schema)
    assert statistics is not None
    rows = pl.read_parquet(kept / "train/*.parquet")
    assert len(rows) == TRAIN_ROWS and rows[FOLD].n_unique() == 4
    catalog = load_catalog(kept)
    places = np.searchsorted(catalog[AD_ID].to_numpy(), rows[AD_ID].to_numpy())
    encoded = encode_in_fold(statistics, schema, catalog[places], rows)
    features = (*schema.statistics_of(Side.AD), *schema.cross)
    assert any(len(f.sources) == 2 for f in schema.statistics_of(Side.AD))
    assert schema.cross and set(encoded) == {f.name for f in features}
    for name, values in encoded.items():
        assert (values == rows[name].to_numpy()).all(), name
    # What a request sees is not what the row saw: the fold counts.
    totals = encode_in_fold(
        statistics,
        schema,
        catalog[places],
        rows.with_columns(pl.lit(NO_FOLD).alias(FOLD)),
    )
    assert all((totals[name] != encoded[name]).any() for name in encoded)
    for feature in schema.statistics_of(Side.AD):
        expected = catalog[feature.name].to_numpy()[places]
        assert (totals[feature.name] == expected).all()


def test_held_out_rows_have_no_fold(kept: Path) -> None:
    for split in ("valid", "test"):
        assert (pl.read_parquet(kept / split / "*.parquet")[FOLD] == NO_FOLD).all()


def test_folds_that_were_not_kept_are_asked_for(prepared_rows: Path) -> None:
    schema = Schema.load(prepared_rows / "schema.json")
    with pytest.raises(ConfigError, match=r"data\.statistics\.keep_folds=true"):
        fold_statistics(prepared_rows, schema)


def test_kept_folds_change_no_other_column(kept: Path, tmp_path: Path) -> None:
    prepare_rows(tmp_path / "data", across(), **STATISTICS)
    for part in ("train", "valid", "test"):
        with_folds = pl.read_parquet(kept / part / "*.parquet")
        plain = pl.read_parquet(tmp_path / "data" / part / "*.parquet")
        assert plain.equals(with_folds.select(plain.columns))
        assert set(with_folds.columns) - set(plain.columns) > {FOLD}
