"""Judges towers while they are trained: the whole catalog against validation clicks."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch.distributed as dist
from torch import nn

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.encode import Encode, encode
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.full_catalog import clicks_of
from torchrec_adrec.evaluation.known_ads import known_ads, new_clicks
from torchrec_adrec.evaluation.ranking_metrics import one_relevant
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import AD_ID, Schema, Side

CUT = 10


class CatalogJudge:
    """Searches for the ads of held-out clicks. Collective.

    Every click is a query, and its ad the one that is relevant. Ads that the user is
    known to have clicked are no candidates: the towers have learnt that he does, and
    those of his history are no negatives, so that they would fill his list. `adrec
    export` does the same with `evaluation.exclude_known`. A click on such an ad is not
    asked for.

    Args:
        data: a prepared data set.
        schema: of the data.
        config: how many clicks, the seed of their draw, and the similarity.
        process: this rank.
        split: whose clicks; those of the test choose nothing.

    Raises:
        ConfigError: it has no clicks, or none on an ad that is new to its user.
    """

    def __init__(
        self,
        data: Path,
        schema: Schema,
        config: Config,
        process: Process,
        split: str = "valid",
    ) -> None:
        self.schema, self.config, self.process = schema, config, process
        self.catalog = load_catalog(data)
        most = config.retrieval.judge_queries
        self.clicks, _ = clicks_of(data, schema, split, most, config.seed)
        self._check_clicks("no clicks", data / split)
        ids = self.catalog[AD_ID].to_numpy()
        self.clicked = np.searchsorted(ids, self.clicks[AD_ID].to_numpy())
        known = known_ads(self.clicks, self.catalog, schema, data, split)
        is_new, self.excluded = new_clicks(known, self.clicked)
        self.clicks = self.clicks.filter(pl.Series(is_new))
        self.clicked = self.clicked[is_new]
        words = "no click on an ad that its user is not known to have clicked before,"
        self._check_clicks(words, data / split)

    def _check_clicks(self, none: str, folder: Path) -> None:
        if not len(self.clicks):
            raise ConfigError(
                f"retrieval.judge = {self.config.retrieval.judge}: {folder} has {none}"
                f" to search for; prepare with a larger data.split.{folder.name}, or"
                " set retrieval.judge=log_loss"
            )

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Return NDCG, recall and MRR of the clicked ads, the same on every rank.

        Args:
            model: the retrieval task, sharded and out of its pipeline.
        """
        model.eval()
        towers: Any = model.module.model  # type: ignore[union-attr]
        ads = self._encode(towers.ad_tower, self.catalog, Side.AD)
        users = self._encode(towers.encode_users, self.clicks, Side.USER)
        parts: list[Float32s] = [users] * self.process.world_size
        dist.all_gather_object(parts, users)
        scorer = InnerProduct.of(
            np.concatenate(parts),
            ads,
            share_of(len(self.catalog), self.process).start,
            self.process.device,
        )
        result = search(scorer, self.clicked, CUT, self.process, self.excluded)
        metrics = one_relevant(result.ranks, (CUT,))
        return {name: float(values.mean()) for name, values in metrics.items()}

    def _encode(self, tower: Encode, rows: pl.DataFrame, side: Side) -> Float32s:
        """Encode this rank's share of the rows."""
        return encode(
            tower,
            rows,
            self.schema,
            side,
            self.config.retrieval.similarity,
            self.config.train.eval_batch_size,
            self.process,
        )
