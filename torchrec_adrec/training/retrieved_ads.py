"""Makes rows of the ads that the towers retrieve for the users of training clicks."""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Columns, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import log_q
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.fold_statistics import encode_in_fold, fold_statistics
from torchrec_adrec.data.prepare.write import write_rows
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import AD_ID, LOG_Q, PROPENSITY, Side
from torchrec_adrec.training.click_search import ROW, ClickSearch


class RetrievedAds:
    """Draws ads that the towers retrieve for the users of training clicks.

    Args:
        config, process, data, towers: as of `retrieved_rows.draw_retrieved_rows`.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        data: Path,
        towers: checkpoint.Checkpoint,
    ) -> None:
        self.config, self.process = config, process
        self.search = search = ClickSearch(config, process, data, towers)
        self.schema, self.catalog = search.schema, search.catalog
        self.statistics = fold_statistics(data, self.schema)
        self.settings = config.ranking.retrieved_negatives
        self.most = min(self.settings.candidates, len(self.catalog))

    def write(self, folder: Path) -> int:
        """Write the rows of all training clicks; return their number. Collective."""
        places, number = self._vector_places(), 0
        with Progress("retrieving negatives", self.search.total, "clicks") as progress:
            for part, clicks in enumerate(self.search.clicks()):
                drawn = self._drawn(clicks, self.search.lists(clicks, self.most))
                number += len(drawn)
                # All ranks have the same lists; each writes its share of the files.
                turn = part % self.process.world_size
                if len(drawn) and turn == self.process.rank:
                    columns = self._columns(clicks, drawn, places)
                    write_rows(folder / f"part-{part:05d}.parquet", columns)
                progress.advance(len(clicks))
        return number

    def _vector_places(self) -> pl.DataFrame:
        """Return where the vectors of each ad stand, which is what splits hold."""
        names = [f.name for f in self.schema.vectors_of(Side.AD)]
        rows = pl.scan_parquet(self.search.files).select(AD_ID, *names)
        return rows.group_by(AD_ID).max().collect()

    def _drawn(self, clicks: pl.DataFrame, lists: Int64s) -> pl.DataFrame:
        """Draw from the lists of some clicks: `query` and `ad`, place by place.

        The draw of an ad is a hash of the row's number and the ad, so it depends
        neither on the ranks nor on how the rows were cut.
        """
        queries = np.repeat(np.arange(len(clicks)), lists.shape[1])
        candidates = pl.DataFrame({"query": queries, "ad": lists.ravel()})
        rows = clicks[ROW].to_numpy()[queries] * len(self.catalog) + lists.ravel()
        seed = salt(f"retrieved negatives {self.config.seed}")
        order = pl.Series("order", salted_hash(rows, seed))
        return (
            candidates.with_columns(order)
            .filter(pl.col("ad") >= 0)
            .join(self.search.known(clicks), on=["query", "ad"], how="anti")
            .sort("query", "order")
            .group_by("query", maintain_order=True)
            .head(self.settings.per_click)
            .select("query", "ad")
        )

    def _columns(
        self, clicks: pl.DataFrame, drawn: pl.DataFrame, places: pl.DataFrame
    ) -> Columns:
        """Return the rows as columns of a split: a click's user with a drawn ad."""
        schema = self.schema
        rows = clicks[drawn["query"].to_numpy()].drop(ROW)
        ads = self.catalog[drawn["ad"].to_numpy()]
        columns = {name: rows[name].to_numpy() for name in rows.columns}
        types = {name: column.dtype for name, column in columns.items()}
        positions = ads.select(AD_ID).join(
            places, on=AD_ID, how="left", maintain_order="left"
        )
        vectors = [feature.name for feature in schema.vectors_of(Side.AD)]
        for name in schema.columns_of(Side.AD):
            source = positions if name in vectors else ads
            columns[name] = source[name].to_numpy()
        if self.statistics is not None:
            columns |= encode_in_fold(self.statistics, schema, ads, rows)
        # What nobody was shown was not clicked; no other label of it is known.
        columns |= {n: np.full(len(ads), np.nan) for n in schema.label_names}
        columns[self.search.click] = np.zeros(len(ads))
        columns[AD_ID] = ads[AD_ID].to_numpy()
        columns[LOG_Q] = log_q(self.catalog, columns[AD_ID])
        if PROPENSITY in columns:
            columns[PROPENSITY] = np.full(len(ads), np.nan)
        return {name: columns[name].astype(kind) for name, kind in types.items()}
