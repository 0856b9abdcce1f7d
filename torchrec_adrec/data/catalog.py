"""The ads: every distinct combination of the ad side's raw values, once.

`catalog.parquet`, sorted by `ad_id`: `ad_id` int64, `impressions` and `clicks` of the
training rows, one encoded column per ad feature, one `raw_*` column per raw value.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.files import check_hashes
from torchrec_adrec.schema import AD_ID

# Odd 64-bit constants of splitmix64 (Steele et al., OOPSLA 2014); the last is 2^64/phi.
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_ads(raw: pl.DataFrame, sources: Sequence[str]) -> NDArray[np.int64]:
    """A 63-bit id of the raw values of an ad, (B,) int64, never negative.

    Written out rather than taken from a library because it must never change: ids stand
    in saved data and in indexes. FAISS keeps -1 for "nothing found".
    """
    mixed = np.zeros(len(raw), dtype=np.uint64)
    for name in sources:
        value = raw[name].cast(pl.Int64).fill_null(-1).to_numpy().view(np.uint64)
        mixed = _splitmix(mixed ^ _splitmix(value))
    return (mixed >> np.uint64(1)).view(np.int64)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def count_ads(
    raw: pl.LazyFrame, sources: Sequence[str], train_rows: int, label: str
) -> pl.DataFrame:
    """One row per distinct ad of *all* rows, with the training rows' counts.

    Raises:
        DataError: two ads share an id.
    """
    in_train = pl.col("row") < train_rows
    ads = (
        raw.select(*sources, label)
        .with_row_index("row")
        .group_by(sources)
        .agg(
            impressions=in_train.sum().cast(pl.Int64),
            clicks=((pl.col(label) == 1) & in_train).sum().cast(pl.Int64),
        )
        .collect(engine="streaming")
    )
    ads = ads.with_columns(pl.Series(AD_ID, hash_ads(ads, sources))).sort(AD_ID)
    if ads[AD_ID].n_unique() != len(ads):
        raise DataError(
            f"two of {len(ads)} ads share a 63-bit id; leave one column out of"
            " data.ad_features"
        )
    return ads


def load_catalog(data: Path) -> pl.DataFrame:
    """The catalog of a prepared data set.

    Raises:
        ManifestError: it is missing or changed, or its ids are not in rising order.
    """
    path = data / "catalog.parquet"
    check_hashes(data, "catalog")
    catalog = pl.read_parquet(path)
    if not (catalog[AD_ID].diff().drop_nulls() > 0).all():
        raise ManifestError(f"{path}: ad ids must rise, each one once")
    return catalog
