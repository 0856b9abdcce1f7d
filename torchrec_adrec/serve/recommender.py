"""From a user's raw columns to 500 candidates to the best 10 ads.

encode (raw columns -> ids) -> retrieve (user tower, index) -> rank (transformer)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import torch

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser, raw_user
from torchrec_adrec.errors import DataError
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.sharded import set_search_threads
from torchrec_adrec.runs.ad_changes import changes_name, open_changes
from torchrec_adrec.schema import AD_ID, RANK_SCORE, SCORE, Side
from torchrec_adrec.serve.crosses import Crosses
from torchrec_adrec.serve.eligible import Eligible, eligible_ids
from torchrec_adrec.serve.engines.choose import Engine, take_engine
from torchrec_adrec.serve.open_run import (
    Parts,
    encode_user,
    example_users,
    open_run,
)
from torchrec_adrec.serve.rank_by import RankBy
from torchrec_adrec.serve.recommendation import Recommendation, timed
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer, Scores

SAMPLED_USERS = 8  # on whose requests an engine is measured


class Recommender:
    """Both models, the index and the catalog of one run, ready for requests.

    Example:
        >>> recommender = Recommender.load(Path("runs/demo"))
        >>> answer = recommender.recommend({"I1": 3, "C1": "68fd1e64"}, top=3)
        >>> answer.ads.shape[0], answer.ads.columns[:2]
        (3, ['ad_id', 'click'])
        >>> list(answer.milliseconds)
        ['encode', 'retrieve', 'rank', 'total']

    Args:
        encoder: fitted by `adrec prepare`.
        retriever: the user tower and the index.
        scorer: the ranker and the catalog.
        crosses: join a user with ads of that catalog.
        settings: how many ads are retrieved and returned, and in which order.

    Attributes:
        engine: with its measured error, once `speed_up` took one; None: the ranker is
            computed as it was trained.

    Raises:
        ConfigError: `recommend.rank_by` names what is neither predicted nor a number of
            the catalog.
    """

    def __init__(
        self,
        encoder: Encoder,
        retriever: Retriever,
        scorer: RankingScorer,
        crosses: Crosses,
        settings: RecommendConfig,
    ) -> None:
        self.encoder, self.retriever, self.scorer = encoder, retriever, scorer
        self.crosses, self.settings = crosses, settings
        self.engine: Engine | None = None
        self._parts: Parts | None = None
        self.rank_by = RankBy.of(settings.rank_by, scorer.schema, scorer.shown)

    @classmethod
    def load(
        cls,
        run: Path,
        threads: int = 1,
        rank_by: str | None = None,
        engine: str | None = None,
    ) -> "Recommender":
        """Open a finished run and prove that its parts belong together.

        Args:
            run: its folder.
            threads: of this process. One is best for single requests: on two, waiting
                for a busy core made ranking 15 times slower.
            rank_by: a formula in the place of `recommend.rank_by`.
            engine: a name in the place of `recommend.engine`.

        Raises:
            ConfigError: `rank_by` is no formula of names that there are, or the engine
                or the index rounds more than `recommend.max_score_error` allows.
            ManifestError, CheckpointError: a part is missing, damaged, was made from
                another part than the ones in the run, or gives other vectors or scores
                than were exported.
        """
        torch.set_num_threads(threads)
        set_search_threads(threads)
        parts = open_run(run, rank_by=rank_by, engine=engine)
        recommender = cls._of(parts)
        recommender.speed_up(example_users(run)[:SAMPLED_USERS])
        return recommender

    @classmethod
    def _of(cls, parts: Parts) -> "Recommender":
        models = parts.retriever, parts.scorer, parts.crosses
        recommender = cls(parts.encoder, *models, parts.settings)
        recommender._parts = parts
        return recommender

    @property
    def changes(self) -> str:
        """Name of the changes of the ads that it knows; empty: there are none."""
        return "" if self._parts is None else self._parts.changes

    def refreshed(self, run: Path) -> "Recommender":
        """Return a recommender that knows the newest changes of the run's ads.

        Models, index and catalog are those of this one and are not read again.

        Args:
            run: that this one was loaded from.

        Raises:
            ConfigError: an added ad lacks a number that `recommend.rank_by` needs.
            ManifestError: the changes are damaged, of another export, or older than
                the index.
        """
        assert self._parts is not None, "loaded from a run"
        name = changes_name(run)
        if name == self.changes:
            return self
        changes = open_changes(run, self._parts.exported)
        recommender = self._of(self._parts.with_changes(changes))
        recommender.engine = self.engine
        return recommender

    def speed_up(self, users: Sequence[RawUser]) -> None:
        """Rank from now on as `recommend.engine` and `recommend.table_type` say.

        Args:
            users: for whose candidates the engine's error and time are measured.

        Raises:
            ConfigError: it rounds more than `recommend.max_score_error` allows.
        """
        if self.settings.serves_exactly:
            self.scorer.look_up_ads(self.settings.ad_vectors_gb)
            return
        requests = []
        for user in users:
            raw = raw_user(user, self.encoder.schema)
            encoded = self._encoded(raw)
            ids, _ = self.retriever.retrieve(encoded, self._candidates())
            cross = self.crosses.of(raw, self.scorer.rows(ids))
            requests.append((encoded, ids, cross))
        self.engine = take_engine(self.scorer, self.settings, requests)

    def recommend(
        self,
        user: RawUser,
        top: int | None = None,
        eligible: Eligible | EligibleAds | None = None,
    ) -> Recommendation:
        """Find the best ads for one user.

        Args:
            user: raw columns; a column that is absent or None is a missing value.
            top: number of ads; default `recommend.top`, or all of a smaller catalog.
            eligible: the ads that may be shown: a bit for each ad of the catalog, ids,
                or a condition on the ad's raw columns, as "budget > 0 AND country =
                'DE'". One that serves many requests is made once, by `eligible_ads`.

        Raises:
            DataError: a column that no user feature is made of, a value of the wrong
                kind, a `top` below 1 or above the number of candidates, or no ad is
                eligible.
            EligibilityError: the index returned an ad that is not eligible.
            PredictionError: a vector, a prediction or the formula is not finite.
        """
        if eligible is not None and not isinstance(eligible, EligibleAds):
            eligible = self.eligible_ads(eligible)
        candidates = self._candidates(eligible)
        top = self.checked_top(top, eligible)
        milliseconds: dict[str, float] = {}
        with timed("encode", milliseconds):
            raw = raw_user(user, self.encoder.schema)
            user_input = self._encoded(raw)
        with timed("retrieve", milliseconds):
            ids, scores = self.retriever.retrieve(user_input, candidates, eligible)
        with timed("rank", milliseconds):
            cross = self.crosses.of(raw, self.scorer.rows(ids))
            predictions = self.scorer.score(user_input, ids, scores, cross)
        milliseconds["total"] = sum(milliseconds.values())
        best = self._best(ids, scores, predictions, top)
        shown = self.scorer.show(best[AD_ID].to_numpy())
        # The join must keep that order.
        ads = best.join(shown, on=AD_ID, maintain_order="left")
        return Recommendation(ads, len(ids), milliseconds)

    def recommend_many(
        self, users: RawColumns, top: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """Find the best ads for several users, as `recommend` does, one after another.

        Args:
            users: (B,) raw columns of the user's side.
            top: number of ads of each.

        Yields:
            What `recommend` returns of the ads, without their raw columns.

        Raises:
            DataError, PredictionError: as of `recommend`.
        """
        top, schema = self.checked_top(top), self.encoder.schema
        encoded = self.encoder.encode(users, Side.USER)
        keys = self.crosses.keys(users)
        answers = self.retriever.retrieve_many(
            tower_input(encoded, schema, Side.USER), self._candidates()
        )
        for row, (ids, scores) in enumerate(zip(*answers, strict=True)):
            columns = {name: column[row : row + 1] for name, column in encoded.items()}
            user = tower_input(columns, schema, Side.USER)
            cross = self.crosses.joined(keys, row, self.scorer.rows(ids))
            predictions = self.scorer.score(user, ids, scores, cross)
            yield self._best(ids, scores, predictions, top)

    def eligible_ads(self, eligible: Eligible) -> EligibleAds:
        """Prepare the ads that may be shown, for any number of requests.

        Raises:
            DataError: it is no such selection, or no ad is eligible.
        """
        ids = eligible_ids(eligible, self.scorer.listed)
        if not len(ids):
            raise DataError(
                f"no ad of the catalog is eligible (eligible = {str(eligible)[:200]});"
                " nothing can be recommended"
            )
        return self.retriever.index.eligible(ids)

    def checked_top(self, top: int | None, eligible: EligibleAds | None = None) -> int:
        """Return how many ads an answer has: `top`, or by default `recommend.top`.

        Raises:
            DataError: there are not so many candidates.
        """
        candidates = self._candidates(eligible)
        if top is None:
            return min(self.settings.top, candidates)
        if not 1 <= top <= candidates:
            raise DataError(
                f"top is {top}, expected 1 to {candidates} (the candidates)"
            )
        return top

    def _best(
        self, ids: Int64s, scores: Float32s, predictions: Scores, top: int
    ) -> pl.DataFrame:
        """Order the candidates of one user and keep the best."""
        ranked = pl.DataFrame(
            {AD_ID: ids} | predictions | {SCORE: scores}
        ).with_columns(
            pl.Series(
                RANK_SCORE, self.rank_by.score(predictions, self.scorer.rows(ids))
            )
        )
        # By id where numbers are equal: the order in which an index returns its ads is
        # its own affair, and the same request must have the same answer.
        order = ranked.sort(RANK_SCORE, AD_ID, descending=[True, False])
        best = order.head(top)
        return best.drop(RANK_SCORE) if self.rank_by.is_label else best

    def _candidates(self, eligible: EligibleAds | None = None) -> int:
        # A small catalog holds fewer ads than the settings ask for.
        index = self.retriever.index
        count = index.count if eligible is None else len(eligible.ids)
        return min(self.settings.candidates, count)

    def user_input(self, user: RawUser) -> TowerInput:
        """Encode one user, of one row, as the models take it.

        Raises:
            DataError: as of `recommend`.
        """
        return self._encoded(raw_user(user, self.encoder.schema))

    def _encoded(self, raw: RawColumns) -> TowerInput:
        return encode_user(self.encoder, raw)
