"""What each ad of the catalog is worth to a user: by the truth, or by logged clicks.

Shape letters: N ads of the catalog, Q requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.config.objectives import Conditional, parents_first
from torchrec_adrec.data.known_world.law import Shown, World
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.funnel.losses import best_of
from torchrec_adrec.evaluation.true_top import ads_of
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema
from torchrec_adrec.serve.rank_by import RankBy


class Worth(Protocol):
    """What the ads are worth to the user of each request."""

    @property
    def meaning(self) -> str:
        """What a list's worth is, in words for the report."""

    def of(self, request: int, top: int) -> tuple[Float64s, Bools]:
        """Return the worth of each ad, and which ads are relevant, (N,) each.

        Args:
            request: its number.
            top: length of a list; the worth of a list is the sum over its ads.
        """

    def eligible(self, request: int) -> Bools:
        """Tell which ads may be shown, (N,)."""


@dataclass(frozen=True)
class TrueWorth:
    """The expectation of `recommend.rank_by` under the law of a known world.

    Each ad counts as if it were shown first, at the row's time and on its device. The
    relevant ads are the oracle's list.

    Attributes:
        world: the law.
        shown: (Q, ...) the truth of the requests' test rows.
        ads: (N,) the world's number of each ad of the catalog.
        rank_by: the formula, into which the true expectations are put.
        conditional: labels whose prediction is a product with that of another one.
    """

    world: World
    shown: pl.DataFrame
    ads: Int64s
    rank_by: RankBy
    conditional: Mapping[str, Conditional]

    @classmethod
    def read(
        cls,
        data: Path,
        rows: Int64s,
        catalog: pl.DataFrame,
        rank_by: RankBy,
        conditional: Mapping[str, Conditional],
    ) -> Self:
        """Read the truth beside a prepared known world.

        Args:
            data: its folder.
            rows: (Q,) of the test split.
            catalog: of the ads.
            rank_by: the served order.
            conditional: `ranking.conditional` of the run.

        Raises:
            ConfigError: the order depends on a label whose expectation is not known.
        """
        for name, rule in conditional.items():
            if name in rank_by.formula.names and rule.given != "click":
                raise ConfigError(
                    f"recommend.rank_by names {name}, given {rule.given}: the known"
                    " world tells expectations given a click alone"
                )
        known = KnownRows.of(data)
        return cls(
            known.world, known.truth[rows], ads_of(catalog, data), rank_by, conditional
        )

    @property
    def meaning(self) -> str:
        """The formula in words."""
        return f"sum of {self.rank_by.formula.text} under the law, each ad shown first"

    def of(self, request: int, top: int) -> tuple[Float64s, Bools]:
        """See `Worth`."""
        row, count = self.shown.row(request, named=True), len(self.ads)
        impressions = Shown(
            np.full(count, row["user"]),
            self.ads,
            np.full(count, row["time"]),
            np.ones(count, dtype=np.int64),
            np.full(count, row["device"]),
        )
        truth = self.world.truth(impressions)
        expected = {
            "click": truth.p_click,
            "engagement": truth.p_engagement,
            "value": truth.expected_value,
        }
        for name in parents_first(self.conditional):
            expected[name] = expected[name] * expected["click"]
        worth = self.rank_by.score(expected, np.arange(count))
        relevant = np.zeros(count, dtype=bool)
        rows = np.flatnonzero(self.eligible(request))
        relevant[best_of(worth, rows, top)] = True
        return worth, relevant

    def eligible(self, request: int) -> Bools:
        """Tell which ads are born at the time of the request."""
        time = self.shown["time"][request]
        return np.asarray(self.world.ads.birth[self.ads] <= time)


@dataclass(frozen=True)
class LoggedWorth:
    """The ads that a user has clicked in the test rows; the oracle's list is worth 1.

    Attributes:
        clicked: of each request, rows of the catalog, each once.
        ads: N.
    """

    clicked: tuple[Int64s, ...]
    ads: int
    meaning: str = "share of the user's clicked ads of the test rows, at most a list"

    @classmethod
    def read(
        cls,
        data: Path,
        rows: Int64s,
        user: Int64s | None,
        ids: Int64s,
        schema: Schema,
    ) -> Self:
        """Read the clicks of the requests' users.

        Args:
            data: a prepared data set.
            rows: (Q,) of the test split.
            user: (Q,) keys; a row without one stands for itself.
            ids: (N,) of the catalog, rising.
            schema: the first label is the click.
        """
        users = np.full(len(rows), NO_USER) if user is None else user
        key = pl.lit(NO_USER) if user is None else pl.col(USER_KEY)
        is_alone = pl.col("row").is_in(rows[users == NO_USER])
        is_wanted = key.is_in(users[users != NO_USER]) | is_alone
        clicks = (
            pl.scan_parquet(data / "test/*.parquet")
            .with_row_index("row")
            .filter((pl.col(schema.labels[0].name) == 1) & is_wanted)
            # A row whose user is missing stands for itself alone.
            .select(
                pl.when(key == NO_USER)
                .then(-2 - pl.col("row").cast(pl.Int64))
                .otherwise(key)
                .alias("user"),
                AD_ID,
            )
            .unique()
            .collect()
        )
        by_user = dict(clicks.group_by("user").agg(AD_ID).iter_rows())
        keys = np.where(users == NO_USER, -2 - rows, users).tolist()
        lists = [np.array(by_user[k]) for k in keys]
        places = [np.sort(np.searchsorted(ids, ads)) for ads in lists]
        return cls(tuple(places), len(ids))

    def of(self, request: int, top: int) -> tuple[Float64s, Bools]:
        """See `Worth`."""
        worth, clicked = np.zeros(self.ads), self.clicked[request]
        worth[clicked] = 1 / min(top, len(clicked))
        return worth, worth > 0

    def eligible(self, request: int) -> Bools:
        """Tell that all ads may be shown: a log does not say which there were."""
        return np.ones(self.ads, dtype=bool)
