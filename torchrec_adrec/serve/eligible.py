"""Which ads of the catalog may be shown: by bitmap, by ids, or by their columns."""

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import UpdatedIndex
from torchrec_adrec.schema import AD_ID

# What `Recommender.recommend` takes: (N,) bools in the order of the catalog, ids, an
# expression of polars, or a condition in SQL.
Eligible = Bools | Int64s | pl.Expr | str


def prepare(
    eligible: Eligible | EligibleAds,
    index: ShardedIndex | UpdatedIndex,
    catalog: pl.DataFrame,
) -> EligibleAds:
    """Prepare the ads that may be shown, for any number of searches.

    What was prepared before an update is prepared anew, because a replaced ad need not
    meet the condition any more. Ids that were given stay, but for removed ads.

    Args:
        eligible: see `eligible_ids`; or prepared, perhaps before an update.
        index: that is searched.
        catalog: of the ads that there are now, by rising id.

    Raises:
        DataError: it is no such selection, or no ad is eligible.
    """
    if isinstance(eligible, EligibleAds):
        if index.is_current(eligible):
            return eligible
        left = np.intersect1d(eligible.ids, catalog[AD_ID].to_numpy())
        eligible = left if eligible.condition is None else eligible.condition
    ids = eligible_ids(eligible, catalog)
    if not len(ids):
        raise DataError(
            f"no ad of the catalog is eligible (eligible = {str(eligible)[:200]});"
            " nothing can be recommended"
        )
    ads = index.eligible(ids)
    ads.condition = eligible if isinstance(eligible, str | pl.Expr) else None
    return ads


def eligible_ids(eligible: Eligible, catalog: pl.DataFrame) -> Int64s:
    """Find the ads that may be shown, (n,), rising.

    Example:
        >>> catalog = pl.DataFrame({"ad_id": [3, 5, 8], "age_limit": [0, 18, None]})
        >>> eligible_ids("age_limit <= 16", catalog).tolist()
        [3]

    Args:
        eligible: a condition is on `ad_id` and the raw columns; an ad for which a value
            is missing meets it only if it says so (`age_limit IS NULL`).
        catalog: of the ads, by rising id.

    Raises:
        DataError: bits of another length, an id or a column that the catalog does not
            have, or a condition that is no condition.
    """
    ids = catalog[AD_ID].to_numpy()
    if isinstance(eligible, str | pl.Expr):
        return np.asarray(ids[_meets(eligible, catalog)])
    values = np.asarray(eligible)
    if values.dtype == bool:
        if values.shape != ids.shape:
            raise DataError(
                f"eligible has {values.size} bits, expected one for each of the"
                f" {len(ids)} ads of the catalog"
            )
        return np.asarray(ids[values])
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"eligible holds {values.dtype}, expected bools or ids of ads")
    unknown = np.setdiff1d(values, ids)
    if len(unknown):
        raise DataError(
            f"ad {unknown[0]} is eligible and not in the catalog, nor are"
            f" {len(unknown) - 1} others"
        )
    return np.unique(values).astype(np.int64)


def _meets(condition: str | pl.Expr, catalog: pl.DataFrame) -> Bools:
    """Evaluate a condition for each ad; unknown is no.

    Raises:
        DataError: as of `eligible_ids`.
    """
    try:
        if isinstance(condition, str):
            condition = pl.sql_expr(condition)
        meets = catalog.select(condition.alias("meets"))["meets"]
    except pl.exceptions.PolarsError as error:
        columns = ", ".join(catalog.columns)
        raise DataError(
            f"eligible = {str(condition)!r}: {str(error).splitlines()[0]}; the columns"
            f" are {columns}"
        ) from None
    if meets.dtype != pl.Boolean or len(meets) != len(catalog):
        raise DataError(
            f"eligible = {str(condition)!r} gives {len(meets)} values of"
            f" {meets.dtype}, expected true or false for each ad"
        )
    return meets.fill_null(False).to_numpy()
