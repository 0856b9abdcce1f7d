"""Who clicked what, as sparse tables of users and ads, read from a prepared data set.

Shape letters: U users, N ads of the catalog.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Interactions:
    """The clicks of all splits.

    A click that repeats one of an earlier split is left out: who has clicked an ad is
    not asked whether he would find it.

    Attributes:
        ids: (N,) of the catalog, rising.
        users: (U,) keys of all users with a click, rising.
        splits: (U, N) each; a value is the number of the click among all clicks, from
            1 in the order of the rows, so that a larger one is a later one.
        repeated: the clicks that were left out of each held-out split.
        nameless: rows with a click, but without a user, that each split has besides.
        in_time_order: whether the order of the rows is one of time for all users.
    """

    ids: Int64s
    users: Int64s
    splits: Mapping[str, csr_matrix]
    repeated: Mapping[str, int]
    nameless: Mapping[str, int]
    in_time_order: bool

    @classmethod
    def load(cls, data: Path) -> "Interactions":
        """Read a prepared data set.

        Raises:
            DataError: it names no user, or a split has no click.
        """
        click = Schema.load(data / "schema.json").labels[0].name
        report = json.loads((data / "report.json").read_text())
        ids = load_catalog(data)[AD_ID].to_numpy()
        clicks, nameless = _clicks(data, click)
        users = clicks[USER_KEY].unique().sort().to_numpy()
        splits, repeated = {}, {}
        for name in SPLITS:
            rows = clicks.filter(pl.col("split") == name)
            first = rows.filter(pl.col("first") == name)
            if not len(first):
                raise DataError(
                    f"{data / name} has no click of a user that an earlier split does"
                    " not have too: nothing can be learnt or measured on it"
                )
            places = (
                np.searchsorted(users, first[USER_KEY].to_numpy()),
                np.searchsorted(ids, first[AD_ID].to_numpy()),
            )
            numbers = first["number"].to_numpy().astype(np.float64)
            shape = len(users), len(ids)
            splits[name] = csr_matrix((numbers, places), shape=shape)
            repeated[name] = len(rows) - len(first)
        order = bool(report.get("in_time_order", False))
        return cls(ids, users, splits, repeated, nameless, order)

    def known(self, split: str) -> csr_matrix:
        """The clicks that are known when a held-out split is asked for, (U, N)."""
        earlier = SPLITS[: SPLITS.index(split)]
        return sum((self.splits[n] for n in earlier[1:]), self.splits[earlier[0]])

    def check_same(self, other: "Interactions", name: str) -> None:
        """Refuse other clicks than these, whose figures would not compare.

        Args:
            other: the clicks of another prepared data set.
            name: how a message names it.

        Raises:
            DataError: says what differs.
        """
        sizes = {"ads": (self.ids, other.ids), "users": (self.users, other.users)}
        differ = [n for n, pair in sizes.items() if not np.array_equal(*pair)]
        if not differ:
            pairs = ((n, self.splits[n] != other.splits[n]) for n in SPLITS)
            differ = [f"the clicks of {n}" for n, unlike in pairs if unlike.nnz]
        if differ:
            raise DataError(
                f"{name} has other {', '.join(differ)}: figures of two data sets do not"
                " compare; prepare both from the same rows with the same split"
            )


def binary(clicks: csr_matrix) -> csr_matrix:
    """The same table with ones, as float32."""
    ones = np.ones(clicks.nnz, dtype=np.float32)
    return csr_matrix((ones, clicks.indices, clicks.indptr), shape=clicks.shape)


def latest(clicks: csr_matrix, length: int) -> csr_matrix:
    """Keep the latest clicks of each user.

    Args:
        clicks: values are larger the later a click is.
        length: how many are kept of a user; 0: none.
    """
    rows = np.repeat(np.arange(clicks.shape[0]), np.diff(clicks.indptr))
    order = np.lexsort((-clicks.data, rows))
    place = np.arange(clicks.nnz) - clicks.indptr[rows[order]]
    kept = np.sort(order[place < length])
    parts = clicks.data[kept], (rows[kept], clicks.indices[kept])
    return csr_matrix(parts, shape=clicks.shape)


def _clicks(data: Path, click: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Every click of a user on an ad, once a split; `first` is its earliest split.

    Returns:
        The clicks, and the number in each split that have no user.
    """
    parts, nameless = [], {}
    for name in SPLITS:
        if not list((data / name).glob("*.parquet")):
            raise DataError(f"{data / name} has no rows; give more data or a share")
        rows = pl.scan_parquet(data / name / "*.parquet")
        if USER_KEY not in rows.collect_schema():
            raise DataError(
                f"{data}: the data name no user, and without users nobody's list can"
                " be judged; name the column (of an own table: data.table.user_id)"
            )
        clicked = rows.filter(pl.col(click) == 1).select(USER_KEY, AD_ID).collect()
        chosen = clicked.filter(pl.col(USER_KEY) != NO_USER)
        parts.append(chosen.with_columns(split=pl.lit(name)))
        nameless[name] = len(clicked) - len(chosen)
    clicks = pl.concat(parts).with_row_index("number", offset=1)
    once = clicks.unique([USER_KEY, AD_ID, "split"], keep="last", maintain_order=True)
    # The splits stand in their order, so the first one is the earliest.
    first = pl.col("split").first().over(USER_KEY, AD_ID)
    return once.with_columns(first=first), nameless
