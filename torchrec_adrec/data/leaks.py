"""How well each user-side column determines each ad-side column.

Where a user column names the ad, the in-batch softmax is solved by matching ids: the
loss falls, recall looks perfect, and nothing was learned that a request could use.
"""

import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side

MIN_SEEN = 5  # a value seen once determines everything
LIMIT = 0.95
MAX_ROWS = 1_000_000  # enough for shares to two digits; keeps 5 x 34 pairs in memory


class Dependency(BaseModel):
    """One pair of raw columns.

    Attributes:
        determined: share of rows in which the ad column has the value that is most
            frequent for the row's user value.
        base_rate: share of the ad column's most frequent value in the same rows.
        rows: rows whose user value is there and was seen at least `MIN_SEEN` times.
    """

    model_config = ConfigDict(frozen=True)

    user: str
    ad: str
    determined: float
    base_rate: float
    rows: int

    @property
    def leaks(self) -> bool:
        """Above the limit, unless always guessing one value is already there."""
        return self.determined > LIMIT and self.base_rate <= LIMIT


def dependencies(train: pl.LazyFrame, schema: Schema) -> list[Dependency]:
    """Every user column against every ad column, the strongest first.

    Args:
        train: raw rows; the first `MAX_ROWS` are looked at.
    """
    users = list(dict.fromkeys(f.source for f in schema.sparse_of(Side.USER)))
    ads = list(dict.fromkeys(f.source for f in schema.sparse_of(Side.AD)))
    rows = train.select(*users, *ads).head(MAX_ROWS).collect()
    found = [_measure(rows, user, ad) for user in users for ad in ads]
    return sorted(found, key=lambda d: d.determined - d.base_rate, reverse=True)


def _measure(rows: pl.DataFrame, user: str, ad: str) -> Dependency:
    pairs = (
        rows.select(user=user, ad=ad).drop_nulls("user").group_by("user", "ad").len()
    )
    seen = pl.col("len").sum().over("user")
    pairs = pairs.filter(seen >= MIN_SEEN)
    total = int(pairs["len"].sum())
    best = int(pairs.group_by("user").agg(pl.col("len").max())["len"].sum())
    one = int(pairs.group_by("ad").agg(pl.col("len").sum())["len"].max() or 0)  # type: ignore[arg-type]
    return Dependency(
        user=user,
        ad=ad,
        determined=best / max(total, 1),
        base_rate=one / max(total, 1),
        rows=total,
    )


def refuse_leaky_sides(found: list[Dependency]) -> None:
    """Refuse sides between which a column gives the ad away.

    Raises:
        DataError: names the pairs and the way out.
    """
    leaks = [d for d in found if d.leaks]
    if leaks:
        named = ", ".join(f"{d.user} -> {d.ad} ({d.determined:.3f})" for d in leaks[:5])
        raise DataError(
            f"{len(leaks)} user columns give an ad column away: {named}; put both ends"
            " on one side (data.ad_features), or set data.allow_leaky_sides=true"
        )
