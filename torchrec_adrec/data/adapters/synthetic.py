"""Criteo-format rows from a known rule, so that the whole path runs without a download.

    shown ad ~ popularity(ad) * exp(5 g . v), popularity by a Zipf law
    click    ~ Bernoulli(sigmoid(-1.6 + activity(user) + quality(ad) + 2 u . v))

Users belong to 40 groups and ads to 60 campaigns; u and v are unit vectors of R^8
around the group's (g) and the campaign's, so ads are shown by group and clicked by
user. C15 is the creative (the ad itself) and determines C2, C14, C18 and C25, as in the
real logs. C1 is the user's group, C3 the user, C4 ... C11 the quarter of each axis of
u; I1 and I2 grow with the user's activity (I2 goes below zero); the other columns carry
nothing.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchrec_adrec.config import SyntheticConfig
from torchrec_adrec.data.adapters.criteo import COLUMNS, HASHES, INTEGERS, LABEL

GROUPS, CAMPAIGNS, LATENT_DIM = 40, 60, 8
BIAS, AFFINITY, TARGETING = -1.6, 2.0, 5.0
QUARTERS = (-0.24, 0.0, 0.24)  # of an axis of a unit vector in R^8
CHUNK_ROWS = 100_000
TRUTH = "truth"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def write(config: SyntheticConfig, seed: int, path: Path, truth: Path) -> None:
    """Write `config.rows` rows; the same seed gives the same bytes.

    Args:
        path: the rows, as Criteo's TSV.
        truth: Parquet of `truth`, the p(click) of each row, in the same order.
    """
    world = World(config, seed)
    rng = np.random.default_rng([seed, 1])
    known = []
    with path.open("wb") as file:
        for first in range(0, config.rows, CHUNK_ROWS):
            rows = world.sample(min(CHUNK_ROWS, config.rows - first), rng)
            known.append(rows.select(TRUTH))
            rows.drop(TRUTH).write_csv(
                file, separator="\t", include_header=False, quote_style="never"
            )
    pl.concat(known).write_parquet(truth)


class World:
    """Users and ads with latent vectors.

    Attributes:
        user, ad: (users, 8) and (ads, 8), unit length.
        activity, quality: (users,) and (ads,), additive parts of the logit.
        shown: (groups, ads), the share of impressions up to and with each ad.
    """

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.group = rng.integers(GROUPS, size=config.users)
        self.campaign = rng.integers(CAMPAIGNS, size=config.ads)
        centre = _units(GROUPS, rng)
        self.user = _around(centre[self.group], rng)
        self.ad = _around(_units(CAMPAIGNS, rng)[self.campaign], rng)
        self.activity = rng.normal(0, 0.6, config.users)
        self.quality = rng.normal(0, 0.4, config.ads)
        popularity = 1 / (np.arange(config.ads) + 10.0)
        shown = popularity * np.exp(TARGETING * centre @ self.ad.T)
        self.shown = np.cumsum(shown / shown.sum(axis=1, keepdims=True), axis=1)

    def probability(self, user: Ints, ad: Ints) -> Floats:
        """p(click) of pairs, (B,)."""
        affinity = (self.user[user] * self.ad[ad]).sum(axis=1)
        logit = BIAS + self.activity[user] + self.quality[ad] + AFFINITY * affinity
        return np.asarray(1 / (1 + np.exp(-logit)))

    def sample(self, rows: int, rng: np.random.Generator) -> pl.DataFrame:
        """`rows` rows in Criteo's columns, as text-ready values, and their `truth`."""
        user = rng.integers(len(self.user), size=rows)
        ad = self._show(user, rng)
        truth = self.probability(user, ad)
        click = rng.random(rows) < truth
        columns = {LABEL: click.astype(np.int8)}
        numbers = self._integers(user, rng)
        hashes = self._hashes(user, ad, rng)
        frame = pl.DataFrame(columns | numbers | hashes).select(
            *COLUMNS, pl.Series(TRUTH, truth)
        )
        absent = {n: rng.random(rows) < 0.2 for n in ("I3", "C10", "C20")}
        return frame.with_columns(
            pl.when(~pl.Series(gone)).then(pl.col(name)).alias(name)
            for name, gone in absent.items()
        )

    def _show(self, user: Ints, rng: np.random.Generator) -> Ints:
        """The ad that each user is shown, (B,)."""
        drawn, group = rng.random(len(user)), self.group[user]
        ad = np.empty(len(user), dtype=np.int64)
        for g in range(GROUPS):
            mine = group == g
            ad[mine] = np.searchsorted(self.shown[g], drawn[mine])
        return ad.clip(max=len(self.ad) - 1)

    def _integers(self, user: Ints, rng: np.random.Generator) -> dict[str, Ints]:
        numbers = {name: rng.geometric(0.05, len(user)) for name in INTEGERS}
        rate = np.exp(1.0 + 1.5 * self.activity[user])
        numbers["I1"] = rng.poisson(rate)
        numbers["I2"] = rng.poisson(2 * rate) - 2
        return numbers

    def _hashes(
        self, user: Ints, ad: Ints, rng: np.random.Generator
    ) -> dict[str, pl.Series]:
        campaign = self.campaign[ad]
        values = {name: rng.integers(20, size=len(user)) for name in HASHES}
        values |= {"C15": ad, "C14": campaign, "C2": campaign % 20}
        values |= {"C18": campaign % 12, "C25": campaign % 5}
        values |= {"C1": self.group[user], "C3": user}
        for axis in range(LATENT_DIM):
            values[f"C{4 + axis}"] = np.digitize(self.user[user, axis], QUARTERS)
        return {
            name: pl.Series(_hex(int(name[1:]), value))
            for name, value in values.items()
        }


def _units(count: int, rng: np.random.Generator) -> Floats:
    vectors = rng.normal(size=(count, LATENT_DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _around(centre: Floats, rng: np.random.Generator) -> Floats:
    vectors = centre + rng.normal(0, 0.15, centre.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _hex(column: int, value: Ints) -> list[str]:
    """Eight hex digits; an odd factor is a bijection of 32 bits, so none collide."""
    mixed = (value + column * 10_000_019) * 2_654_435_761 % 2**32
    return [f"{x:08x}" for x in mixed.tolist()]
