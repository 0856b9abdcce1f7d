"""Statistics of a training row's user with another ad, as the row's fold sees them.

Such a row is not in the counts, so it cannot see a label of its own. But it stands
beside the training row that it was made of, and it must see what that one sees: with
the counts of all rows it would see the click of that row, and whoever compares the two
numbers of one ad could tell a row that was made from one that was logged.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.prepare.ad_keys import key_column
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.statistics import Statistics, by_sources
from torchrec_adrec.data.prepare.value_keys import KeyedColumn, KeyedColumns, pair_keys
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema, Side

FOLD = "statistics:fold"  # of a row, a column of a split; no feature's name has a colon


def user_keys(encoder: Encoder, raw: RawColumns) -> dict[str, Int64s]:
    """Return the keys of users that crosses need, by the name of the split's column.

    Args:
        encoder: fitted.
        raw: the raw columns of rows.
    """
    assert encoder.statistics is not None, "crosses are statistics"
    sources = dict.fromkeys((f.sources[1],) for f in encoder.schema.cross)
    return {
        key_column(*names): column.keys[column.codes]
        for names, column in encoder.statistics.keys.of(raw, sources).items()
    }


def fold_statistics(data: Path, schema: Schema) -> Statistics | None:
    """Open the statistics with the counts of every fold; None: no ad's column has one.

    Args:
        data: a prepared data set.
        schema: of it.

    Raises:
        ConfigError: the folds were not kept.
    """
    if not (schema.statistics_of(Side.AD) or schema.cross):
        return None
    statistics = Statistics.load(data, with_folds=True)
    if statistics is None or not statistics.keeps_folds:
        raise ConfigError(
            f"ranking.retrieved_negatives: {data} has statistics of values without the"
            " folds of its training rows, which the rows need; set"
            " data.statistics.keep_folds=true and run `adrec prepare` again"
        )
    return statistics


def encode_in_fold(
    statistics: Statistics, schema: Schema, ads: pl.DataFrame, rows: pl.DataFrame
) -> Mapping[str, Float32s]:
    """Encode the statistics of ads and the crosses of users with ads, (B,) by feature.

    Args:
        statistics: with the counts of every fold.
        schema: of the data.
        ads: (B,) of the catalog.
        rows: (B,) training rows, whose users and folds these are.
    """
    features = (*schema.statistics_of(Side.AD), *schema.cross)
    of_ads, each = dict.fromkeys(f.sources for f in schema.statistics_of(Side.AD)), {}
    for sources in by_sources(features):
        if sources in of_ads:
            each[sources] = ads[key_column(*sources)].to_numpy()
        else:
            ad, user = sources
            of_user = rows[key_column(user)].to_numpy()
            each[sources] = pair_keys(ads[key_column(ad)].to_numpy(), of_user)
    keyed: KeyedColumns = {}
    for sources, row_keys in each.items():
        distinct, codes = np.unique(row_keys, return_inverse=True)
        keyed[sources] = KeyedColumn(distinct, codes.astype(np.int64))
    return statistics.encode_keyed(features, keyed, rows[FOLD].to_numpy())
