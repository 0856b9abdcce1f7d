"""What the columns of a known world's rows tell of p(click), and nothing beyond them.

`p_click` of the truth knows the user, the ad and the time. A model knows the columns:
the user's number is missing in some rows and unknown in others, a rare ad's too, and
of the time there is only the hour. The best it can say is the mean of the law over all
that the columns leave open, weighted by how likely each of it makes the columns:

    E[p | x] = sum over days d, users u, ads a of w p(u, a, t(d, hour)) / sum of w
    w = P(d | hour) * visits(u) * Poisson(I1, I2, I6 | activity(u))
        * share of a among the ads shown to u's segment at t * P(position | a)

over the users and ads that fit the columns. docs/known_world.md says it in words.

Shape letters: U users, N ads, D days of one hour; u and a candidates of one row.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import expit
from scipy.stats import binom

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.data.adapters import synthetic
from torchrec_adrec.data.adapters.criteo import COLUMNS
from torchrec_adrec.data.known_world.law import BIAS, World, evening, hour
from torchrec_adrec.data.known_world.log import POSITIONS, Log, lowered
from torchrec_adrec.data.prepare.vocabulary import UNKNOWN
from torchrec_adrec.errors import ManifestError

COUNTS = ("I1", "I2", "I6")
TASTES = tuple(f"C{4 + axis}" for axis in range(8))


@dataclass(frozen=True)
class Days:
    """When rows of each hour of the day were shown.

    Attributes:
        time: per hour (D,) mean time of the rows of each day, in days. Where ads are
            born within a day it is cut there. Within an hour tastes turn by less than
            .002: the mean time stands for all of it.
        share: per hour (D,) shares of these rows.
    """

    time: tuple[Float64s, ...]
    share: tuple[Float64s, ...]

    @classmethod
    def of(cls, time: Float64s, births: Float64s) -> "Days":
        """From the times of rows."""
        found = []
        for h in range(24):
            own = time[hour(time) == h]
            day = np.floor(own) + 1e6 * np.searchsorted(births, own, side="right")
            _, at = np.unique(day, return_inverse=True)
            count = np.bincount(at)
            found.append((np.bincount(at, own) / count, count / max(len(own), 1)))
        times, shares = zip(*found, strict=True)
        return cls(times, shares)


class Attainable:
    """E[p(click) | columns] of rows of a known world.

    Args:
        known_users, known_ads: (U,), (N,) bool: whose number has an id of its own in
            the prepared data; all others look alike.
        days: over which times to take the mean: those of the rows that are judged for
            the best of all, those of the training rows for a model that has learnt all
            of these but cannot know that tastes have turned since.
    """

    def __init__(
        self,
        world: World,
        log: Log,
        known_users: Bools,
        known_ads: Bools,
        days: Days,
    ) -> None:
        self.world, self.days = world, days
        self._known_users, self._known_ads = known_users, known_ads
        self._visits = np.log(log.visits)
        self._shares = np.log(log.weight)
        births, birth = log.births, world.ads.birth
        self._births = births
        total = [np.where(birth <= b, log.weight, 0.0).sum(axis=1) for b in births]
        self._total = np.log(total)  # (births, groups)
        self._quarters = synthetic.quarters(world)
        self._rates = synthetic.count_rates(world.users.activity)
        lower = lowered(np.arange(world.config.ads), world.config.ads)
        places = np.arange(POSITIONS)[:, None]
        self._places = binom.logpmf(places, POSITIONS - 1, lower)  # (positions, N)
        groups, campaigns = world.users.group, world.ads.campaign
        self._of_group = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
        self._alike = [
            np.flatnonzero((campaigns == c) & ~known_ads)
            for c in range(campaigns.max() + 1)
        ]

    def of(self, rows: pl.DataFrame) -> Float64s:
        """(B,) of rows as `rows_of` gives them."""
        return np.array([self._one(row) for row in rows.iter_rows(named=True)])

    def _one(self, row: dict[str, float | int | None]) -> float:
        users, of_user = self._users(row)
        ads, of_ad = self._ads(row)
        h, position = int(row["hour"] or 0), int(row["position"] or 0)
        time, group = self.days.time[h], self.world.users.group[users[0]]
        p = self._relevance(users, ads, time, h, int(row["device"] or 0))
        shown = self._shown(group, ads, time)
        if np.isneginf(shown).all():  # only ads that were not born in these days
            shown = np.zeros_like(shown)
        weight = of_user[:, None, None] + shown + of_ad
        weight += np.log(self.days.share[h])[:, None]
        weight = np.exp(weight - weight.max())
        mean = float((weight * p).sum() / weight.sum())
        return float(mean * position**-self.world.config.position_bias)

    def _relevance(
        self, users: Int64s, ads: Int64s, time: Float64s, h: int, device: int
    ) -> Float64s:
        """p(click) at position 1, (u, D, a)."""
        world = self.world
        tastes = world.tastes(users[:, None], time)
        logit = world.config.affinity * (tastes @ world.ads.vector[ads].T)
        logit += world.users.activity[users][:, None, None]
        logit += world.ads.quality[ads] + world.fit[device, world.ads.format[ads]]
        logit += BIAS + evening(np.array((h + 0.5) / 24))
        return np.asarray(expit(logit))

    def _users(self, row: dict[str, float | int | None]) -> tuple[Int64s, Float64s]:
        """The users that fit a row, (u,), and the log of how likely they make it."""
        number = int(row["user"] or 0)
        if row["number"] is not None and self._known_users[number]:
            return np.array([number]), np.zeros(1)
        fit = self._of_group[self.world.users.group[number]]
        there = [axis for axis, name in enumerate(TASTES) if row[name] is not None]
        codes = self._quarters[:, there]
        fit = fit[(codes[fit] == codes[number]).all(axis=1)]
        if row["number"] is not None:
            fit = fit[~self._known_users[fit]]
        likely = self._visits[fit].copy()
        for name, rates in self._rates.items():
            count = row[name]
            if count is not None:  # Poisson, but for what is the same for all users
                below = synthetic.I2_BELOW if name == "I2" else 0
                likely += (count + below) * np.log(rates[fit]) - rates[fit]
        return fit, likely

    def _ads(self, row: dict[str, float | int | None]) -> tuple[Int64s, Float64s]:
        """The ads that fit a row, (a,), and the log of how likely is its position."""
        number, position = int(row["ad"] or 0), int(row["position"] or 0)
        if self._known_ads[number]:
            return np.array([number]), np.zeros(1)
        fit = self._alike[self.world.ads.campaign[number]]
        return fit, self._places[position - 1, fit]

    def _shown(self, group: int, ads: Int64s, time: Float64s) -> Float64s:
        """Log of the share of each ad among those shown to a group, (D, a)."""
        stage = np.searchsorted(self._births, time, side="right") - 1
        share = self._shares[group, ads] - self._total[stage, group][:, None]
        born = self.world.ads.birth[ads] <= time[:, None]
        return np.where(born, share, -np.inf)


@dataclass(frozen=True)
class KnownRows:
    """The test rows of a prepared known world, and who has an id of its own.

    Attributes:
        world, log: as they were made.
        truth: (B, ...) `rows.parquet` of these rows.
        rows: what `Attainable.of` takes.
        known_users, known_ads: see `Attainable`.
        days: `Days` of the test rows and of the training rows.
    """

    world: World
    log: Log
    truth: pl.DataFrame
    rows: pl.DataFrame
    known_users: Bools
    known_ads: Bools
    days: dict[str, Days]

    @classmethod
    def of(cls, data: Path) -> "KnownRows":
        """From the folder of a prepared data set, split by time.

        Raises:
            ManifestError: its rows are not those of its truth.
        """
        world = synthetic.read_world(data / synthetic.TRUTH)
        seed = synthetic.read_seed(data / synthetic.TRUTH)
        log = Log(world, seed)
        truth = pl.read_parquet(data / synthetic.TRUTH / synthetic.ROWS)
        train, test = (
            pl.read_parquet(data / f"{split}/*.parquet", columns=["C3", "C15", "click"])
            for split in ("train", "test")
        )
        first, last = truth[: len(train)], truth[-len(test) :]
        if not test["click"].cast(bool).equals(last["engagement"].is_not_null()):
            raise ManifestError(
                f"{data}: the test rows' clicks are not those of the last rows of"
                " truth/; prepare a known world again, with data.split.by=time"
            )
        times = {"test": last["time"].to_numpy(), "train": first["time"].to_numpy()}
        return cls(
            world,
            log,
            last,
            rows_of(data, last),
            _known(first["user"], train["C3"], world.config.users),
            _known(first["ad"], train["C15"], world.config.ads),
            {name: Days.of(time, log.births) for name, time in times.items()},
        )

    def every(self, step: int) -> "KnownRows":
        """Of every `step`-th row alone: the mean over all that is open takes a
        millisecond a row.
        """
        return replace(self, truth=self.truth[::step], rows=self.rows[::step])

    def attainable(self, days: str) -> Float64s:
        """(B,) E[p(click) | columns] over the days of the `test` or `train` rows."""
        return Attainable(
            self.world, self.log, self.known_users, self.known_ads, self.days[days]
        ).of(self.rows)


def rows_of(data: Path, truth: pl.DataFrame) -> pl.DataFrame:
    """What the last rows' columns hold: `user`, `ad`, `position`, `device`, `hour`;
    null where the column is missing: `number` (C3), tastes and counts.
    """
    wanted = ["C3", *TASTES, *COUNTS]
    raw = pl.scan_csv(
        data / synthetic.TSV,
        separator="\t",
        has_header=False,
        new_columns=list(COLUMNS),
        schema_overrides={n: pl.String for n in COLUMNS if n not in COUNTS},
    )
    columns = raw.select(wanted).tail(len(truth)).collect().rename({"C3": "number"})
    shown = truth.select("user", "ad", "position", "device").with_columns(
        pl.Series("hour", hour(truth["time"].to_numpy()))
    )
    return shown.hstack(columns)


def _known(number: pl.Series, ids: pl.Series, count: int) -> Bools:
    """Who of `count` has an id of its own: training showed it often enough."""
    known = np.zeros(count, dtype=bool)
    known[number.filter(ids > UNKNOWN).to_numpy()] = True
    return known
