"""User features -> 500 candidates -> 10 ads, with milliseconds per stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser, raw_user
from torchrec_adrec.errors import DataError
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads
from torchrec_adrec.runs.stages import (
    CONFIG,
    EXPORT,
    INDEX,
    RANKING,
    RETRIEVAL,
    check_inputs,
)
from torchrec_adrec.schema import AD_ID, SCORE, Side
from torchrec_adrec.serve.proof import Proof, check_names
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer
from torchrec_adrec.tasks.sharded import restore_whole


@dataclass(frozen=True)
class Recommendation:
    """What one request gets.

    Attributes:
        ads: highest click probability first: `ad_id`, the ranker's prediction of each
            label, `score` (the towers' inner product) and the ad's raw columns.
        candidates: ads that the ranker saw.
        milliseconds: per stage, and `total`.
    """

    ads: pl.DataFrame
    candidates: int
    milliseconds: dict[str, float]


class Recommender:
    """Both models, the index and the catalog of one run, ready for requests.

    Example:
        recommender = Recommender.load(Path("runs/demo"))
        recommender.recommend({"I1": 3, "C1": "68fd1e64"}).ads
    """

    def __init__(
        self,
        encoder: Encoder,
        retriever: Retriever,
        scorer: RankingScorer,
        config: Config,
    ) -> None:
        self.encoder, self.retriever, self.scorer = encoder, retriever, scorer
        self.config = config

    @classmethod
    def load(cls, run: Path, threads: int = 1) -> "Recommender":
        """Open a finished run.

        Args:
            threads: of this process. One is best for single requests: on two, waiting
                for a busy core made ranking 15 times slower.

        Raises:
            ManifestError, CheckpointError: a part is missing, damaged, was made from
                another part than the ones beside it, or gives other vectors or scores
                than were exported.
        """
        torch.set_num_threads(threads)
        set_search_threads(threads)
        for stage in (RETRIEVAL, EXPORT, INDEX, RANKING):
            check_inputs(stage, run)
        config = load_config(run / "index" / CONFIG)
        encoder = Encoder.load(run / "data")
        schema = encoder.schema
        towers, start = restore_whole("retrieval", run, schema)
        ranker, ranking = restore_whole("ranking", run, schema)
        manifest = IndexManifest.load(run / "index")
        check_names(run, start, ranking, manifest)
        index = ShardedIndex.load(run / "index", manifest)
        found = cls(
            encoder,
            Retriever(towers.model.user_tower, index),
            RankingScorer(ranker.model, schema, load_catalog(run / "data")),
            config,
        )
        Proof(
            found.user_input,
            found.retriever,
            found.scorer,
            towers.model.ad_tower,
            start,
            manifest,
            run / "export",
        ).check()
        return found

    def recommend(self, user: RawUser, top: int | None = None) -> Recommendation:
        """The best ads for one user.

        Args:
            user: raw columns; a column that is absent or None is a missing value.
            top: how many; default `recommend.top`, or all of a smaller catalog.

        Raises:
            DataError: a column that no user feature is made of, a value of the wrong
                kind, or a `top` below 1 or above the number of candidates.
            PredictionError: a vector or a prediction is not finite.
        """
        candidates = self._candidates()
        if top is None:  # a catalog may hold fewer ads than the setting asks for
            top = min(self.config.recommend.top, candidates)
        if not 1 <= top <= candidates:
            raise DataError(
                f"top is {top}, expected 1 to {candidates} (the candidates)"
            )
        spent: dict[str, float] = {}
        with _clock("encode", spent):
            rows = self.user_input(user)
        with _clock("retrieve", spent):
            ids, scores = self.retriever.retrieve(rows, candidates)
        with _clock("rank", spent):
            predicted = self.scorer.score(rows, ids)
        spent["total"] = sum(spent.values())
        found = pl.DataFrame({AD_ID: ids} | predicted | {SCORE: scores})
        click = self.encoder.schema.labels[0].name
        best = found.sort(click, descending=True).head(top)
        ads = best.join(self.scorer.shown, on=AD_ID, maintain_order="left")
        return Recommendation(ads, len(ids), spent)

    def _candidates(self) -> int:
        return min(self.config.recommend.candidates, self.retriever.index.count)

    def user_input(self, user: RawUser) -> TowerInput:
        """One user as the models take it.

        Raises:
            DataError: as of `recommend`.
        """
        encoded = self.encoder.encode(raw_user(user, self.encoder.schema), Side.USER)
        return tower_input(encoded, self.encoder.schema, Side.USER)


@contextmanager
def _clock(stage: str, spent: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[stage] = (time.perf_counter() - started) * 1e3
