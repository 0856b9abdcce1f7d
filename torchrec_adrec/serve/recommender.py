"""From a user's raw columns to 500 candidates to the best 10 ads.

encode (raw columns -> ids) -> retrieve (user tower, index) -> rank (transformer)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import torch

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import RawUser, raw_user
from torchrec_adrec.errors import DataError, PredictionError
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.sharded import set_search_threads
from torchrec_adrec.runs.ad_changes import changes_name, open_changes
from torchrec_adrec.runs.unpack import unpacked
from torchrec_adrec.schema import Side
from torchrec_adrec.serve.eligible import Eligible, prepare
from torchrec_adrec.serve.engines.choose import Engine, take_engine
from torchrec_adrec.serve.explain import Explanation, explain
from torchrec_adrec.serve.joined_tables import join_user_tables
from torchrec_adrec.serve.open_run import example_users, open_run
from torchrec_adrec.serve.parts import Parts, encode_user, naming_columns
from torchrec_adrec.serve.rank_by import RankBy, Ranked
from torchrec_adrec.serve.recommendation import Recommendation, timed

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
        parts: of the run, loaded.

    Attributes:
        engine: with its measured error, once `speed_up` took one; None: the ranker is
            computed as it was trained.

    Raises:
        ConfigError: `recommend.rank_by` names what is neither predicted nor a number of
            the catalog.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.encoder, self.retriever = parts.encoder, parts.retriever
        self.scorer, self.crosses = parts.scorer, parts.crosses
        self.engine: Engine | None = None
        schema, shown = parts.scorer.schema, parts.scorer.shown
        self.rank_by = RankBy.of(parts.settings.rank_by, schema, shown)

    @classmethod
    def load(
        cls,
        run: Path,
        threads: int = 1,
        rank_by: str | None = None,
        engine: str | None = None,
        is_certified: bool = True,
    ) -> "Recommender":
        """Open a finished run and prove that its parts belong together.

        Args:
            run: its folder, or a bundle of it (`serve.bundle`).
            threads: of this process. One is best for single requests: on two, waiting
                for a busy core made ranking 15 times slower.
            rank_by: a formula in the place of `recommend.rank_by`.
            engine: a name in the place of `recommend.engine`.
            is_certified: whether a certificate that is there must hold.

        Raises:
            ConfigError: `rank_by` is no formula of names that there are, or the engine
                or the index rounds more than `recommend.max_score_error` allows.
            ManifestError, CheckpointError: a part is missing, damaged, was made from
                another part than the ones in the run, or gives other vectors or scores
                than were exported; or a certificate that is there does not hold.
        """
        torch.set_num_threads(threads)
        set_search_threads(threads)
        with unpacked(run) as folder:
            parts = open_run(folder, is_certified, rank_by=rank_by, engine=engine)
            recommender = cls(parts)
            recommender.speed_up(example_users(folder)[:SAMPLED_USERS])
        return recommender

    @property
    def settings(self) -> RecommendConfig:
        """How it recommends."""
        return self.parts.settings

    @property
    def changes(self) -> str:
        """Name of the changes of the ads that it knows; empty: there are none."""
        return self.parts.changes

    def refreshed(self, run: Path, name: str | None = None) -> "Recommender":
        """Return a recommender that knows the newest changes of the run's ads.

        Models, index and catalog are those of this one and are not read again.

        Args:
            run: that this one was loaded from.
            name: of other changes than the newest; empty: none at all.

        Raises:
            ConfigError: an added ad lacks a number that `recommend.rank_by` needs.
            ManifestError: the changes are damaged, of another export, or older than
                the index.
        """
        with unpacked(run) as folder:
            name = changes_name(folder) if name is None else name
            if name == self.changes:
                return self
            changes = open_changes(folder, self.parts.exported, name)
        recommender = Recommender(self.parts.with_changes(changes))
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
        else:
            self.engine = self._engine(users)
        # Last, because what rounds tables looks for those of TorchRec.
        join_user_tables(self.parts.towers, self.scorer.ranker)

    def _engine(self, users: Sequence[RawUser]) -> Engine:
        requests = []
        for user in users:
            raw = raw_user(user, self.encoder.schema)
            encoded = encode_user(self.encoder, raw)
            ids, _ = self.retriever.retrieve(encoded, self.parts.candidates())
            rows = self.scorer.rows(ids)
            requests.append((encoded, rows, self.crosses.of(raw, rows)))
        return take_engine(self.scorer, self.settings, requests)

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
                'DE'". One that serves many requests is made once, by `eligible_ads`;
                after an update it is made anew in every request.

        Raises:
            DataError: a column that no user feature is made of, a value of the wrong
                kind, a `top` below 1 or above the number of candidates, or no ad is
                eligible.
            EligibilityError: the index returned an ad that is not eligible.
            PredictionError: a vector, a prediction or the formula is not finite.
        """
        if eligible is not None:
            eligible = self.eligible_ads(eligible)
        candidates = self.parts.candidates(eligible)
        top = self.checked_top(top, eligible)
        milliseconds: dict[str, float] = {}
        with naming_columns(user, self.encoder.schema):
            with timed("encode", milliseconds):
                raw = raw_user(user, self.encoder.schema)
                user_input = encode_user(self.encoder, raw)
            with timed("retrieve", milliseconds):
                ids, scores = self.retriever.retrieve(user_input, candidates, eligible)
            with timed("rank", milliseconds):
                rows = self.scorer.rows(ids)
                cross = self.crosses.of(raw, rows)
                predictions = self.scorer.score(user_input, rows, scores, cross)
            milliseconds["total"] = sum(milliseconds.values())
            ranked = Ranked(ids, rows, scores, predictions)
            best, rows = self.rank_by.best(ranked, top)
        ads = best.hstack(self.scorer.shown_of(rows))
        return Recommendation(ads, len(ids), milliseconds)

    def explain(
        self,
        user: RawUser,
        ad_id: int,
        top: int | None = None,
        eligible: Eligible | EligibleAds | None = None,
    ) -> Explanation:
        """Tell why an ad is among the best, or at which stage it was lost.

        Args:
            user, top, eligible: as of `recommend`.
            ad_id: of the ad, which need not be in the catalog.

        Raises:
            DataError, PredictionError: as of `recommend`.
        """
        if eligible is not None:
            eligible = self.eligible_ads(eligible)
        top = self.checked_top(top, eligible)
        with naming_columns(user, self.encoder.schema):
            return explain(self.parts, self.rank_by, user, ad_id, top, eligible)

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
            DataError: as of `recommend`.
            PredictionError: likewise; its `row` is that of the user.
        """
        top, schema = self.checked_top(top), self.encoder.schema
        encoded = self.encoder.encode(users, Side.USER)
        keys = self.crosses.keys(users)
        answers = self.retriever.retrieve_many(
            tower_input(encoded, schema, Side.USER), self.parts.candidates()
        )
        for row, (ids, scores) in enumerate(zip(*answers, strict=True)):
            columns = {name: column[row : row + 1] for name, column in encoded.items()}
            user = tower_input(columns, schema, Side.USER)
            rows = self.scorer.rows(ids)
            cross = self.crosses.joined(keys, row, rows)
            try:
                predictions = self.scorer.score(user, rows, scores, cross)
                ranked = Ranked(ids, rows, scores, predictions)
                best, _ = self.rank_by.best(ranked, top)
            except PredictionError as error:
                raise PredictionError(str(error), row) from None
            yield best

    def eligible_ads(self, eligible: Eligible | EligibleAds) -> EligibleAds:
        """Prepare the ads that may be shown, for any number of requests.

        Raises:
            DataError: it is no such selection, or no ad is eligible.
        """
        return prepare(eligible, self.retriever.index, self.scorer.listed)

    def checked_top(self, top: int | None, eligible: EligibleAds | None = None) -> int:
        """Return how many ads an answer has: `top`, or by default `recommend.top`.

        Raises:
            DataError: there are not so many candidates.
        """
        candidates = self.parts.candidates(eligible)
        if top is None:
            return min(self.settings.top, candidates)
        if not 1 <= top <= candidates:
            raise DataError(
                f"top is {top}, expected 1 to {candidates} (the candidates)"
            )
        return top

    def user_input(self, user: RawUser) -> TowerInput:
        """Encode one user, of one row, as the models take it."""
        return self.parts.user_input(user)
