"""Find the ads that are truly best for a user of a known world.

Retrieval should find them.

Shape letters: Q users, N ads of the catalog, K.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.adapters import synthetic
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.exact_search import ExcludedAds


@dataclass(frozen=True)
class TrueTop:
    """Test rows of different users, and the best ads at their time and device.

    Attributes:
        rows: (Q,) numbers of test rows, rising; their columns describe the users.
        best: (Q, K) positions in the catalog of the ads with the highest p(click) at
            position 1, among those that are born.
        unborn: the ads of the catalog that are no candidates yet.
    """

    rows: Int64s
    best: Int64s
    unborn: ExcludedAds

    @classmethod
    def of(
        cls,
        known: KnownRows,
        catalog: pl.DataFrame,
        data: Path,
        users: int,
        k: int,
        seed: int,
    ) -> "TrueTop":
        """Draw users of the test rows at random and find their best ads.

        Args:
            known: the test rows and their law.
            catalog: of the prepared data set.
            data: its folder.
            users: how many at most.
            k: K, how many ads of each.
            seed: of the draw.

        Raises:
            DataError: fewer than `k` ads of the catalog are born.
        """
        ads = ads_of(catalog, data)
        rows = _one_row_each(known.truth["user"].to_numpy(), users, seed)
        birth, best, unborn = known.world.ads.birth[ads], [], []
        for row in rows.tolist():
            impression = known.truth.row(row, named=True)
            born = np.flatnonzero(birth <= impression["time"])
            if len(born) < k:
                raise DataError(f"{len(born)} ads are born, expected at least {k}")
            # Position 1 and the row's own time and device: what the user would do if
            # each ad were shown first at that moment.
            worth = known.world.worth(
                np.array([impression["user"]]),
                ads[born],
                "click",
                impression["time"],
                impression["device"],
            )[0]
            best.append(born[np.argsort(-worth, kind="stable")[:k]])
            unborn.append(np.flatnonzero(birth > impression["time"]))
        starts = np.cumsum([0, *map(len, unborn)])
        return cls(rows, np.stack(best), ExcludedAds(starts, np.concatenate(unborn)))


def ads_of(catalog: pl.DataFrame, data: Path) -> Int64s:
    """Look up the world's number of each ad of the catalog, (N,).

    Raises:
        DataError: one is not of this world.
    """
    world = pl.read_parquet(
        data / synthetic.TRUTH / synthetic.ADS, columns=["ad", "C15"]
    ).with_columns(pl.col("C15").cast(pl.Int64))
    # The catalog has another order of ads; C15, the creative, names an ad in both.
    creative = catalog.select(
        pl.col("raw_C15").str.to_integer(base=16, dtype=pl.Int64).alias("C15")
    )
    numbers = creative.join(world, on="C15", how="left", maintain_order="left")["ad"]
    if numbers.null_count():
        raise DataError(
            f"{numbers.null_count()} ads of the catalog are not in {data}/truth;"
            " prepare again"
        )
    return np.asarray(numbers.to_numpy(), dtype=np.int64)


def _one_row_each(user: Int64s, count: int, seed: int) -> Int64s:
    """Find the first row of each of `count` users, or of all if they are fewer."""
    # One row per user: frequent users would otherwise count many times.
    _, first = np.unique(user, return_index=True)
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(first)[:count])
