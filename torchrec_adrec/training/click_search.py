"""Searches for the users of training clicks, among the ads that training showed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch.distributed as dist

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.vectors import FOLDER, expand
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.encode import Encode, encode
from torchrec_adrec.evaluation.exact_search import ExcludedAds, search
from torchrec_adrec.evaluation.known_ads import ads_of_histories
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema, Side
from torchrec_adrec.tasks.sharded import build

CLICKS = 16_384  # whose lists are held at a time
ROW = "row:number"  # among all training rows; no other column has this name


class ClickSearch:
    """Finds the best ads of the users of training clicks, by the towers. Collective.

    Ads that no training row shows are no candidates: no row could teach that one of
    them is ever clicked, so a model would learn that new ads are not.

    Args:
        config: of the towers.
        process: this rank.
        data: a prepared data set.
        towers: their checkpoint.

    Attributes:
        schema: of the data.
        click: the name of the first label.
        catalog: the candidates. An ad's place is its row here.
        ids: (N,) of the candidates, rising.
        total: the number of training clicks.
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
        self.click = schema.label_names[0]
        self.catalog = load_catalog(data).filter(pl.col("impressions") > 0)
        self.ids = self.catalog[AD_ID].to_numpy()
        self.files = sorted((data / "train").glob("part-*.parquet"))
        model = build("retrieval", schema, config, process).model
        checkpoint.load(towers, model, schema)
        model.eval()
        self._towers: Any = model.module.model
        self._ads = self._encode(self._towers.ad_tower, self.catalog, Side.AD)
        self._pairs = self._clicks_of_users()
        clicked = pl.scan_parquet(self.files).select(pl.col(self.click) == 1)
        self.total = int(clicked.sum().collect().item())

    def clicks(self) -> Iterator[pl.DataFrame]:
        """Yield the training rows that were clicked, numbered through all files."""
        first = 0
        for path in self.files:
            rows = pl.read_parquet(path)
            numbers = pl.Series(ROW, np.arange(first, first + len(rows)))
            first += len(rows)
            clicks = rows.with_columns(numbers).filter(pl.col(self.click) == 1)
            yield from clicks.iter_slices(CLICKS)

    def lists(
        self, clicks: pl.DataFrame, length: int, excluded: ExcludedAds | None = None
    ) -> Int64s:
        """Return the best ads of the users of some clicks, as places, (Q, length).

        Args:
            clicks: of `clicks`.
            length: of a list; -1 stands where there were no more ads.
            excluded: ads that are no candidates; the clicked one always is.
        """
        vectors = expand(self.schema.vectors_of(Side.USER), clicks, self.data / FOLDER)
        users = clicks.with_columns(pl.Series(n, v) for n, v in vectors.items())
        local = self._encode(self._towers.encode_users, users, Side.USER)
        parts: list[Float32s] = [local] * self.process.world_size
        dist.all_gather_object(parts, local)
        first = share_of(len(self.catalog), self.process).start
        device = self.process.device
        scorer = InnerProduct.of(np.concatenate(parts), self._ads, first, device)
        clicked = self.places(clicks)
        return search(scorer, clicked, length, self.process, excluded).lists

    def places(self, rows: pl.DataFrame) -> Int64s:
        """Return the places of the rows' ads, (Q,)."""
        return np.searchsorted(self.ids, rows[AD_ID].to_numpy())

    def known(self, clicks: pl.DataFrame) -> pl.DataFrame:
        """Return what no row may call unclicked: `query` and `ad`, a place.

        The ad that was clicked, all others that training rows say this user clicked,
        and those of the user's history. Clicks of held-out rows stay unknown.
        """
        queries = np.arange(len(clicks))
        pairs = [pl.DataFrame({"query": queries, "ad": self.places(clicks)})]
        if USER_KEY in clicks.columns:
            asked = clicks.select(USER_KEY).with_columns(pl.Series("query", queries))
            others = asked.join(self._pairs, on=USER_KEY)
            places = pl.Series("ad", self.places(others))
            pairs.append(others.select("query").with_columns(places))
        histories = ads_of_histories(clicks, self.catalog, self.schema)
        if histories is not None:
            query = np.repeat(queries, np.diff(histories.starts))
            pairs.append(pl.DataFrame({"query": query, "ad": histories.positions}))
        return pl.concat(pairs)

    def _clicks_of_users(self) -> pl.DataFrame:
        """Return each ad that a user of the training rows clicked, once."""
        rows = pl.scan_parquet(self.files)
        if USER_KEY not in rows.collect_schema():
            return pl.DataFrame(schema={USER_KEY: pl.Int64, AD_ID: pl.Int64})
        is_known = (pl.col(self.click) == 1) & (pl.col(USER_KEY) != NO_USER)
        return rows.filter(is_known).select(USER_KEY, AD_ID).unique().collect()

    def _encode(self, tower: Encode, rows: pl.DataFrame, side: Side) -> Float32s:
        kind = self.config.retrieval.similarity
        size = self.config.train.eval_batch_size
        return encode(tower, rows, self.schema, side, kind, size, self.process)
