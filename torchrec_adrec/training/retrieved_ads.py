"""Searches for the users of training clicks, and makes rows of ads that it finds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch.distributed as dist

from torchrec_adrec.arrays import Columns, Float32s, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog, log_q
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.fold_statistics import encode_in_fold, fold_statistics
from torchrec_adrec.data.prepare.write import write_rows
from torchrec_adrec.data.vectors import FOLDER, expand
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.encode import Encode, encode
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.known_ads import ads_of_histories
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import (
    AD_ID,
    LOG_Q,
    NO_USER,
    PROPENSITY,
    USER_KEY,
    Schema,
    Side,
)
from torchrec_adrec.tasks.sharded import build

CLICKS = 16_384  # whose lists are held at a time
ROW = "row:number"  # among all training rows; no other column has this name


class RetrievedAds:
    """Draws ads that the towers retrieve for the users of training clicks.

    Ads that no training row shows are no candidates: no row could teach that one of
    them is ever clicked, so a ranker would learn that new ads are not.

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
        self.config, self.process, self.data = config, process, data
        self.schema = schema = Schema.load(data / "schema.json")
        self.statistics = fold_statistics(data, schema)
        self.settings = config.ranking.retrieved_negatives
        self.click = schema.label_names[0]
        self.catalog = load_catalog(data).filter(pl.col("impressions") > 0)
        self.ids = self.catalog[AD_ID].to_numpy()
        self.most = min(self.settings.candidates, len(self.ids))
        self.files = sorted((data / "train").glob("part-*.parquet"))
        self.model = build("retrieval", schema, config, process).model
        checkpoint.load(towers, self.model, schema)
        self.model.eval()

    def write(self, folder: Path) -> int:
        """Write the rows of all training clicks; return their number. Collective."""
        model: Any = self.model.module.model
        ads = self._encode(model.ad_tower, self.catalog, Side.AD)
        known, places = self._clicks_of_users(), self._vector_places()
        total = sum(len(clicks) for clicks in self._clicks())
        number = 0
        with Progress("retrieving negatives", total, "clicks") as progress:
            for part, clicks in enumerate(self._clicks()):
                lists = self._search(model.encode_users, clicks, ads)
                drawn = self._drawn(clicks, lists, known)
                number += len(drawn)
                # All ranks have the same lists; each writes its share of the files.
                turn = part % self.process.world_size
                if len(drawn) and turn == self.process.rank:
                    columns = self._columns(clicks, drawn, places)
                    write_rows(folder / f"part-{part:05d}.parquet", columns)
                progress.advance(len(clicks))
        return number

    def _clicks(self) -> Iterator[pl.DataFrame]:
        """Yield the training rows that were clicked, numbered through all files."""
        first = 0
        for path in self.files:
            rows = pl.read_parquet(path)
            numbers = pl.Series(ROW, np.arange(first, first + len(rows)))
            first += len(rows)
            clicks = rows.with_columns(numbers).filter(pl.col(self.click) == 1)
            yield from clicks.iter_slices(CLICKS)

    def _clicks_of_users(self) -> pl.DataFrame:
        """Return each ad that a user of the training rows clicked, once."""
        rows = pl.scan_parquet(self.files)
        if USER_KEY not in rows.collect_schema():
            return pl.DataFrame(schema={USER_KEY: pl.Int64, AD_ID: pl.Int64})
        is_known = (pl.col(self.click) == 1) & (pl.col(USER_KEY) != NO_USER)
        return rows.filter(is_known).select(USER_KEY, AD_ID).unique().collect()

    def _vector_places(self) -> pl.DataFrame:
        """Return where the vectors of each ad stand, which is what splits hold."""
        names = [f.name for f in self.schema.vectors_of(Side.AD)]
        rows = pl.scan_parquet(self.files).select(AD_ID, *names)
        return rows.group_by(AD_ID).max().collect()

    def _search(self, tower: Encode, clicks: pl.DataFrame, ads: Float32s) -> Int64s:
        """Return the best ads of the users of some clicks, as places, (Q, K)."""
        vectors = expand(self.schema.vectors_of(Side.USER), clicks, self.data / FOLDER)
        users = clicks.with_columns(pl.Series(n, v) for n, v in vectors.items())
        local = self._encode(tower, users, Side.USER)
        parts: list[Float32s] = [local] * self.process.world_size
        dist.all_gather_object(parts, local)
        first = share_of(len(self.catalog), self.process).start
        device = self.process.device
        scorer = InnerProduct.of(np.concatenate(parts), ads, first, device)
        return search(scorer, self._places(clicks), self.most, self.process).lists

    def _encode(self, tower: Encode, rows: pl.DataFrame, side: Side) -> Float32s:
        kind = self.config.retrieval.similarity
        size = self.config.train.eval_batch_size
        return encode(tower, rows, self.schema, side, kind, size, self.process)

    def _places(self, rows: pl.DataFrame) -> Int64s:
        return np.searchsorted(self.ids, rows[AD_ID].to_numpy())

    def _drawn(
        self, clicks: pl.DataFrame, lists: Int64s, known: pl.DataFrame
    ) -> pl.DataFrame:
        """Draw from the lists of some clicks: `query` and `ad`, place by place.

        The draw of an ad is a hash of the row's number and the ad, so it depends
        neither on the ranks nor on how the rows were cut.
        """
        queries = np.repeat(np.arange(len(clicks)), lists.shape[1])
        candidates = pl.DataFrame({"query": queries, "ad": lists.ravel()})
        rows = clicks[ROW].to_numpy()[queries] * len(self.ids) + lists.ravel()
        seed = salt(f"retrieved negatives {self.config.seed}")
        order = pl.Series("order", salted_hash(rows, seed))
        return (
            candidates.with_columns(order)
            .filter(pl.col("ad") >= 0)
            .join(self._known(clicks, known), on=["query", "ad"], how="anti")
            .sort("query", "order")
            .group_by("query", maintain_order=True)
            .head(self.settings.per_click)
            .select("query", "ad")
        )

    def _known(self, clicks: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
        """Return what no row may call unclicked: `query` and `ad`.

        The ad that was clicked, all others that training rows say this user clicked,
        and those of the user's history. Clicks of held-out rows stay unknown.
        """
        queries = np.arange(len(clicks))
        pairs = [pl.DataFrame({"query": queries, "ad": self._places(clicks)})]
        if USER_KEY in clicks.columns:
            asked = clicks.select(USER_KEY).with_columns(pl.Series("query", queries))
            others = asked.join(known, on=USER_KEY)
            places = pl.Series("ad", self._places(others))
            pairs.append(others.select("query").with_columns(places))
        histories = ads_of_histories(clicks, self.catalog, self.schema)
        if histories is not None:
            query = np.repeat(queries, np.diff(histories.starts))
            pairs.append(pl.DataFrame({"query": query, "ad": histories.positions}))
        return pl.concat(pairs)

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
        columns[self.click] = np.zeros(len(ads))
        columns[AD_ID] = ads[AD_ID].to_numpy()
        columns[LOG_Q] = log_q(self.catalog, columns[AD_ID])
        if PROPENSITY in columns:
            columns[PROPENSITY] = np.full(len(ads), np.nan)
        return {name: columns[name].astype(kind) for name, kind in types.items()}
