"""The loaded parts of a run that answer requests together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import polars as pl
import torch

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser, column_kinds, raw_user
from torchrec_adrec.errors import PredictionError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.manifest import EmbeddingManifest
from torchrec_adrec.index.updated import Absorbed, UpdatedIndex
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.serve.crosses import Crosses
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer, Scores


@dataclass(frozen=True)
class Parts:
    """What answers requests.

    Attributes:
        encoder: fitted by `adrec prepare`.
        retriever: the user tower and the index.
        scorer: the ranker and the catalog.
        crosses: join a user with ads of that catalog.
        settings: how many ads are retrieved and returned, and in which order.
        towers: both of them, of the retriever's checkpoint.
        catalog: as it was prepared.
        exported: the manifest of the vectors that the index was built from.
        absorbed: the changes that the index was built with.
        changes: name of the changes of the ads; empty: there are none.
    """

    encoder: Encoder
    retriever: Retriever
    scorer: RankingScorer
    crosses: Crosses
    settings: RecommendConfig
    towers: TwoTower
    catalog: pl.DataFrame
    exported: EmbeddingManifest
    absorbed: Absorbed
    changes: str = ""

    def with_changes(self, changes: Changes) -> Self:
        """Return the parts with changes of the ads; nothing is read or loaded again.

        Args:
            changes: all since the export, in the place of those that are there.

        Raises:
            ManifestError: they are older than the index.
        """
        index = self.retriever.index
        base = index.base if isinstance(index, UpdatedIndex) else index
        updated = UpdatedIndex(base, changes, self.absorbed)
        return replace(
            self,
            retriever=Retriever(self.retriever.tower, updated),
            scorer=self.scorer.with_changes(self.catalog, changes),
            crosses=Crosses(self.encoder, changes.rows_behind(self.catalog)),
            changes=changes.name,
        )

    def candidates(self, eligible: EligibleAds | None = None) -> int:
        """Return the number of ads that are retrieved for a user."""
        # A small catalog holds fewer ads than the settings ask for.
        index = self.retriever.index
        count = index.count if eligible is None else len(eligible.ids)
        return min(self.settings.candidates, count)

    def user_input(self, user: RawUser) -> TowerInput:
        """Encode one user, of one row, as the models take it.

        Raises:
            DataError: a column or a value is not one of a user.
        """
        return encode_user(self.encoder, raw_user(user, self.encoder.schema))

    @torch.inference_mode()
    def user_vector(self, user: RawUser) -> Float32s:
        """Encode one user with the tower, (1, D)."""
        return self.retriever.vectors(self.user_input(user))

    def retrieve(
        self, user: RawUser, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Find the candidates of a user and their scores, best first, both (K,)."""
        candidates = self.candidates(eligible)
        return self.retriever.retrieve(self.user_input(user), candidates, eligible)

    def predict(self, user: RawUser, ads: Int64s, scores: Float32s) -> Scores:
        """Predict each label of some ads for a user, (n,) by label.

        Args:
            user: raw columns.
            ads: (n,) ids.
            scores: (n,) inner products of the towers, which a blend reads.
        """
        raw = raw_user(user, self.encoder.schema)
        rows = self.scorer.rows(ads)
        cross = self.crosses.of(raw, rows)
        return self.scorer.score(encode_user(self.encoder, raw), rows, scores, cross)


def encode_user(encoder: Encoder, raw: RawColumns) -> TowerInput:
    """Encode the raw columns of users as the models take them."""
    return tower_input(encoder.encode(raw, Side.USER), encoder.schema, Side.USER)


@contextmanager
def naming_columns(user: RawUser, schema: Schema) -> Iterator[None]:
    """Name, in an error of a model, the columns that the user had but no value."""
    try:
        yield
    except PredictionError as error:
        kinds = column_kinds(schema, Side.USER)
        given = [f"{n} ({kinds[n]})" for n, value in user.items() if value]
        raise PredictionError(f"{error}; the user had {given}") from None
