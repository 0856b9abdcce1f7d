"""Compute what the columns of a known world's rows tell of p(click).

`p_click` of the truth is computed from the user, the ad and the time. A model sees the
columns alone: the user's number is missing in some rows and unknown in others, so is a
rare ad's, and of the time there is only the hour. Its best prediction is the mean of
the law over all users, ads and times that fit the columns, weighted by how likely each
of them makes the columns:

    E[p | x] = sum over days d, users u, ads a of w p(u, a, t(d, hour)) / sum of w
    w = P(d | hour) * visits(u) * Poisson(I1, I2, I6 | activity(u))
        * share of a among the ads shown to u's segment at t * P(position | a)

over the users and ads that fit the columns. docs/known_world.md explains it in words.

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
    """The days on which rows of each hour were shown.

    Attributes:
        time: per hour (D,) mean time of the rows of each day, in days. A day in which
            ads are born counts as two. Within an hour tastes turn by less than 0.002,
            so the mean time may replace all times.
        share: per hour (D,) shares of these rows.
    """

    time: tuple[Float64s, ...]
    share: tuple[Float64s, ...]

    @classmethod
    def of(cls, time: Float64s, births: Float64s) -> "Days":
        """Group the times of rows.

        Args:
            time: (B,) of each row, in days.
            births: times at which ads are born.
        """
        means, shares = [], []
        for h in range(24):
            of_hour = time[hour(time) == h]
            # One number for a day and the births before: a birth begins a new "day".
            births_before = np.searchsorted(births, of_hour, side="right")
            day = np.floor(of_hour) + 1e6 * births_before
            _, group = np.unique(day, return_inverse=True)
            count = np.bincount(group)
            means.append(np.bincount(group, of_hour) / count)
            shares.append(count / max(len(of_hour), 1))
        return cls(tuple(means), tuple(shares))


class Attainable:
    """E[p(click) | columns] of rows of a known world.

    Args:
        world: the law.
        log: who visits, and which ads are shown to whom.
        known_users: (U,) bool, whose number has an id of its own in the prepared data;
            all others have the same id.
        known_ads: (N,) bool, the same of ads.
        days: the times to take the mean over. With those of the judged rows it is the
            best possible prediction; with those of the training rows it is that of a
            model that has learnt everything but cannot know how tastes turned since.
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
        positions = np.arange(POSITIONS)[:, None]
        # Log of P(position | ad), (positions, N).
        self._positions = binom.logpmf(positions, POSITIONS - 1, lower)
        groups, campaigns = world.users.group, world.ads.campaign
        self._of_group = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
        self._unknown_of_campaign = [
            np.flatnonzero((campaigns == c) & ~known_ads)
            for c in range(campaigns.max() + 1)
        ]

    def of(self, rows: pl.DataFrame) -> Float64s:
        """Compute E[p(click) | columns] of rows as `rows_of` gives them, (B,)."""
        return np.array([self._one(row) for row in rows.iter_rows(named=True)])

    def _one(self, row: dict[str, float | int | None]) -> float:
        """Take the weighted mean over (users, days, ads) that fit one row."""
        users, log_user = self._users(row)
        ads, log_ad = self._ads(row)
        h, position = int(row["hour"] or 0), int(row["position"] or 0)
        time, group = self.days.time[h], self.world.users.group[users[0]]
        p = self._relevance(users, ads, time, h, int(row["device"] or 0))
        log_shown = self._log_share_shown(group, ads, time)
        if np.isneginf(log_shown).all():  # no such ad was born in these days
            log_shown = np.zeros_like(log_shown)
        log_weight = log_user[:, None, None] + log_shown + log_ad
        log_weight += np.log(self.days.share[h])[:, None]
        # Weights are exp of sums of logs: without the maximum all could round to 0.
        weight = np.exp(log_weight - log_weight.max())
        mean = float((weight * p).sum() / weight.sum())
        return float(mean * position**-self.world.config.position_bias)

    def _relevance(
        self, users: Int64s, ads: Int64s, time: Float64s, h: int, device: int
    ) -> Float64s:
        """Compute p(click) at position 1, (u, D, a)."""
        world = self.world
        tastes = world.tastes(users[:, None], time)
        logit = world.config.affinity * (tastes @ world.ads.vector[ads].T)
        logit += world.users.activity[users][:, None, None]
        logit += world.ads.quality[ads] + world.fit[device, world.ads.format[ads]]
        logit += BIAS + evening(np.array((h + 0.5) / 24))
        return np.asarray(expit(logit))

    def _users(self, row: dict[str, float | int | None]) -> tuple[Int64s, Float64s]:
        """Find the users that fit a row, (u,), and the log of how likely each is."""
        number = int(row["user"] or 0)
        if row["number"] is not None and self._known_users[number]:
            return np.array([number]), np.zeros(1)
        fit = self._of_group[self.world.users.group[number]]
        # A user fits if every taste that the row tells is the same quarter.
        present = [axis for axis, name in enumerate(TASTES) if row[name] is not None]
        codes = self._quarters[:, present]
        fit = fit[(codes[fit] == codes[number]).all(axis=1)]
        if row["number"] is not None:
            fit = fit[~self._known_users[fit]]
        log_likelihood = self._visits[fit].copy()
        for name, rates in self._rates.items():
            count = row[name]
            # The log of a Poisson probability, without its factorial: that is the same
            # for all users.
            if count is not None:
                below = synthetic.I2_BELOW if name == "I2" else 0
                log_likelihood += (count + below) * np.log(rates[fit]) - rates[fit]
        return fit, log_likelihood

    def _ads(self, row: dict[str, float | int | None]) -> tuple[Int64s, Float64s]:
        """Find the ads that fit a row, (a,), and the log of P(position | ad)."""
        number, position = int(row["ad"] or 0), int(row["position"] or 0)
        if self._known_ads[number]:
            return np.array([number]), np.zeros(1)
        fit = self._unknown_of_campaign[self.world.ads.campaign[number]]
        return fit, self._positions[position - 1, fit]

    def _log_share_shown(self, group: int, ads: Int64s, time: Float64s) -> Float64s:
        """Compute the log of each ad's share among those shown to a group, (D, a)."""
        stage = np.searchsorted(self._births, time, side="right") - 1
        share = self._shares[group, ads] - self._total[stage, group][:, None]
        born = self.world.ads.birth[ads] <= time[:, None]
        return np.where(born, share, -np.inf)


@dataclass(frozen=True)
class KnownRows:
    """The test rows of a prepared known world, and who has an id of its own.

    Attributes:
        world: the law that made them.
        log: who visits, and which ads are shown to whom.
        truth: (B, ...) `rows.parquet` of these rows.
        rows: what `Attainable.of` takes.
        known_users: see `Attainable`.
        known_ads: see `Attainable`.
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
        """Read the folder of a prepared data set, split by time.

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
        # The truth has all rows in order of time, so the splits are its two ends.
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
        """Keep every `step`-th row alone: `attainable` takes a millisecond a row."""
        return replace(self, truth=self.truth[::step], rows=self.rows[::step])

    def attainable(self, days: str) -> Float64s:
        """Compute E[p(click) | columns], (B,), over the days of `test` or `train`."""
        return Attainable(
            self.world, self.log, self.known_users, self.known_ads, self.days[days]
        ).of(self.rows)


def rows_of(data: Path, truth: pl.DataFrame) -> pl.DataFrame:
    """Read what the last rows' columns hold.

    Returns:
        `user`, `ad`, `position`, `device`, `hour`; and, null where a column is missing,
        `number` (C3), tastes and counts.
    """
    names = ["C3", *TASTES, *COUNTS]
    raw = pl.scan_csv(
        data / synthetic.TSV,
        separator="\t",
        has_header=False,
        new_columns=list(COLUMNS),
        schema_overrides={n: pl.String for n in COLUMNS if n not in COUNTS},
    )
    columns = raw.select(names).tail(len(truth)).collect().rename({"C3": "number"})
    shown = truth.select("user", "ad", "position", "device").with_columns(
        pl.Series("hour", hour(truth["time"].to_numpy()))
    )
    return shown.hstack(columns)


def _known(number: pl.Series, ids: pl.Series, count: int) -> Bools:
    """Tell who of `count` has an id: training showed its number often enough."""
    known = np.zeros(count, dtype=bool)
    known[number.filter(ids > UNKNOWN).to_numpy()] = True
    return known
