"""Negatives drawn uniformly from all ads that training showed.

They are added to the batch's, or are the only ones.

Ads of a log come as often as they were shown, so rare ones are hardly ever negatives,
and a tower may score them as it likes. Ads that only held-out rows show are never
drawn: training must not know of them.

Source: Yang et al., Mixed negative sampling, WWW 2020.
"""

from pathlib import Path

import numpy as np
import polars as pl
from torch import Tensor

from torchrec_adrec.arrays import Columns
from torchrec_adrec.data.catalog import load_catalog, log_q
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema, Side


class UniformNegatives:
    """Draws a step's ads, the same for any number of ranks, and divides them by rank.

    Args:
        data: folder of a prepared data set.
        schema: of the ad's columns.
        count: ads of one step over all ranks.
        batch_size: rows of one step over all ranks.
        seed: of the run.
        rank: of this process.
        world_size: number of ranks.
        in_batch: whether the ads of the rows are negatives too.

    Raises:
        ConfigError: the ranks do not divide `count`.
    """

    def __init__(
        self,
        data: Path,
        schema: Schema,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        in_batch: bool = True,
    ) -> None:
        if count % world_size:
            raise ConfigError(
                f"retrieval.uniform_negatives = {count} must be a multiple of the"
                f" {world_size} ranks"
            )
        self.columns = shown_ads(data, schema)
        self.ads, self.count = len(self.columns[AD_ID]), count
        self.rows = batch_size if in_batch else 0
        self.seed, self.rank, self.local_count = seed, rank, count // world_size

    def of_step(self, step: int) -> Columns:
        """The columns of this rank's ads of a step, (count / W,) each."""
        rng = np.random.default_rng([self.seed, step])
        # Every rank draws the ads of all ranks and keeps its slice: with a seed of its
        # own for each rank, a step's ads would depend on the number of ranks.
        drawn = rng.integers(self.ads, size=self.count)
        first = self.rank * self.local_count
        local = drawn[first : first + self.local_count]
        return {name: values[local] for name, values in self.columns.items()}

    def mixed(self, log_q: Tensor) -> Tensor:
        """The log of each ad's share of all negatives of a step.

        It is log((B p + U / M) / (B + U)), with p the ad's share of the impressions, B
        rows whose ads are negatives (0 if none are), and U ads drawn uniformly from M.

        Args:
            log_q: (N,), log p.
        """
        drawn, total = self.count / self.ads, self.rows + self.count
        expected = self.rows * log_q.double().exp() + drawn
        return (expected / total).log().float()


def shown_ads(data: Path, schema: Schema) -> Columns:
    """The columns of all ads that training showed, in rising order of their ids.

    Args:
        data: folder of a prepared data set.
        schema: of the ad's columns.
    """
    # Ads without impressions stand only in held-out rows.
    shown = load_catalog(data).filter(pl.col("impressions") > 0)
    columns = {n: shown[n].to_numpy() for n in (*schema.columns_of(Side.AD), AD_ID)}
    columns[LOG_Q] = log_q(shown, columns[AD_ID])
    return columns
