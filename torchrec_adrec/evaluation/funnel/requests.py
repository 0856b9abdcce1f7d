"""The requests that the funnel is judged by: held-out users, one request each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Columns, Int64s
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.held_out_users import (
    OF_ALL,
    OF_CLICKED,
    OF_ROWS,
    TEST_ROW,
    read_held_out_users,
)
from torchrec_adrec.data.request import RawUser, raw_users
from torchrec_adrec.data.vectors import FOLDER, expand
from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.schema import NO_USER, USER_KEY, Side


@dataclass(frozen=True)
class Requests:
    """Raw users of test rows.

    Attributes:
        rows: (Q,) of the test split, rising.
        raw: (Q, ...) the columns of a request.
        encoded: (Q,) each, what the encoder makes of them.
        user: (Q,) keys, `NO_USER` where a row has none; None: the data names no user.
        held: how many `prepare` has kept of this kind.
    """

    rows: Int64s
    raw: pl.DataFrame
    encoded: Columns
    user: Int64s | None
    held: int

    @classmethod
    def draw(
        cls, data: Path, encoder: Encoder, count: int, seed: int, kind: str = OF_ALL
    ) -> Self:
        """Draw users of the test split, and prove that they are what they seem.

        Args:
            data: a prepared data set.
            encoder: of the recommender.
            count: how many, or all where there are fewer.
            seed: of the draw.
            kind: `OF_ALL`, `OF_CLICKED` for users with a click in the test rows, or
                `OF_ROWS` for rows whose propensity is known, of any user.

        Raises:
            ManifestError: `prepare` has kept none, or they are not those test rows.
            DataError: there are none, or one is a user whom training has read.
        """
        kept = read_held_out_users(data)
        kept = kept.filter(pl.col(kind))
        if not len(kept):
            raise DataError(f"{data / 'test'} has no user whose ads could be judged")
        # The first of one order: a larger sample holds the smaller one.
        order = np.random.default_rng([seed, 7]).permutation(len(kept))
        kept_rows = kept[np.sort(order[:count])]
        rows = kept_rows[TEST_ROW].to_numpy()
        raw = kept_rows.drop(TEST_ROW, OF_ALL, OF_CLICKED, OF_ROWS)
        encoded = encoder.encode(raw_users(raw, encoder.schema), Side.USER)
        test = pl.scan_parquet(data / "test/*.parquet")
        names = [*encoded, *(n for n in (USER_KEY,) if n in test.collect_schema())]
        written = test.select(names).collect()[rows]
        stored = {name: written[name].to_numpy() for name in encoded}
        vectors = encoder.schema.vectors_of(Side.USER)
        stored |= expand(vectors, stored, data / FOLDER)
        _check_rows(encoded, stored, data)
        user = written[USER_KEY].to_numpy() if USER_KEY in names else None
        _check_split_by_user(data, user)
        return cls(rows, raw, encoded, user, len(kept))

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.rows)

    def users(self) -> Sequence[RawUser]:
        """Return the requests as the recommender takes them."""
        return self.raw.to_dicts()


def _check_rows(encoded: Columns, written: Columns, data: Path) -> None:
    # Served and prepared values must be equal to the last bit: the same code made them.
    # A row of another split, or another row, would differ in some column.
    for name, values in encoded.items():
        is_other = (values != written[name]).reshape(len(values), -1).any(axis=1)
        differ = np.flatnonzero(is_other)
        if len(differ):
            user = int(differ[0])
            raise ManifestError(
                f"{data}: {name} of held-out user {user} is encoded as {values[user]},"
                f" its test row holds {written[name][user]}: the users are not those of"
                " the test split; prepare again"
            )


def _check_split_by_user(data: Path, user: Int64s | None) -> None:
    """Refuse users whom training has read where the split keeps them apart."""
    report = json.loads((data / "report.json").read_text())
    if user is None or report["split_by"] != "user":
        return
    named = user[user != NO_USER]
    train = pl.scan_parquet(data / "train/*.parquet")
    both = train.filter(pl.col(USER_KEY).is_in(named)).select(USER_KEY).head(1)
    if len(both.collect()):
        raise DataError(
            f"{data}: a user of the test split has training rows too, though the split"
            " is by user; prepare again"
        )
