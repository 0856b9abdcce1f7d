"""From candidates to click probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from torchrec_adrec.arrays import Columns, Float32s, Float64s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ManifestError, PredictionError
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.modules.embeddings import regroup
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.tasks.blend import ALONE, Blend
from torchrec_adrec.tasks.calibration import Calibrations
from torchrec_adrec.tasks.label_heads import prediction

BLOCK = 65_536  # ads of the catalog that are looked up at once

Scores = dict[str, Float64s]
# Of the ranker's dense part: vectors of both sides, the user's numbers, the ads'.
Inputs = tuple[Sequence[Tensor], Tensor, Tensor]


class RankingScorer:
    """The ranker and the features of every ad.

    Args:
        ranker: scores a user's candidates.
        schema: of the data.
        catalog: every ad, encoded and raw.
        calibrations: of the ranker's checkpoint.
        blend: of the ranker's checkpoint, with the click of the towers.
        towers: the model of that blend; None: the ranker serves alone.

    Attributes:
        ids: (N,), of the catalog, rising.
        columns: the encoded features, (N,) each.
        shown: `ad_id` and the raw columns of each ad, for people to read.
        looked_up: vectors (N, E) and numbers (N, F) of all ads, once `look_up_ads` was
            called.
    """

    def __init__(
        self,
        ranker: Any,
        schema: Schema,
        catalog: pl.DataFrame,
        calibrations: Calibrations | None = None,
        blend: Blend = ALONE,
        towers: TwoTower | None = None,
    ) -> None:
        self.blend, self.towers = blend, towers
        self.ranker, self.schema, self.calibrations = ranker, schema, calibrations
        self.looked_up: tuple[Tensor, Tensor] | None = None
        self.ids = catalog[AD_ID].to_numpy()
        names = schema.columns_of(Side.AD)
        self.columns = {name: catalog[name].to_numpy() for name in names}
        raw = [f"raw_{name}" for name in schema.sources_of(Side.AD)]
        self.shown = catalog.select(AD_ID, *raw).rename(
            lambda name: name.removeprefix("raw_")
        )

    @torch.inference_mode()
    def score(
        self,
        user: TowerInput,
        ad_ids: Int64s,
        scores: Float32s,
        cross: Columns | None = None,
    ) -> Scores:
        """Predict each label for each ad and a user of one row: (n,) by label.

        Args:
            user: of one row.
            ad_ids: (n,).
            scores: (n,) inner products of the towers, which a blend reads.
            cross: (n,) each, what joins the user with these ads (`serve.crosses`).

        Raises:
            ManifestError: an ad that the catalog does not hold.
            PredictionError: a prediction is not finite.
        """
        logits = self.ranker.dense(*self.inputs(user, ad_ids, cross))
        clicks = None
        if self.towers is not None:
            # Their numbers without crosses: what towers were trained on.
            alone = self.features(ad_ids)
            clicks = self.towers.click_logits(user, alone, torch.from_numpy(scores))
        return self._predictions(logits, clicks)

    @torch.inference_mode()
    def score_pairs(
        self, users: TowerInput, ads: TowerInput, cross: Columns, clicks: Tensor
    ) -> Scores:
        """Predict each label for pairs of a user and an ad, (B,) by label.

        Args:
            users, ads: B rows each, which need not be of the catalog.
            cross: (B,) each, what joins the two of a pair.
            clicks: (B,) click logits of the towers, which a blend reads.

        Raises:
            PredictionError: a prediction is not finite.
        """
        of_users = self._vectors(self.ranker.user_tables, users, Side.USER)
        of_ads = self._vectors(self.ranker.ad_tables, ads, Side.AD)
        numbers = self._joined(ads.dense, cross)
        logits = self.ranker.dense((of_users, of_ads), users.dense, numbers)
        return self._predictions(logits, None if self.towers is None else clicks)

    def _predictions(self, logits: Tensor, clicks: Tensor | None) -> Scores:
        """Turn logits (n, T) into predictions; `clicks` (n,) are those of a blend."""
        logits = logits.double()
        if clicks is not None:
            logits[:, 0] = self.blend.apply(logits[:, 0], clicks.double())
        try:
            return {
                label.name: prediction(label, column, self.calibrations).numpy()
                for label, column in zip(self.schema.labels, logits.T, strict=True)
            }
        except PredictionError as error:
            model = "ranker" if clicks is None else "blend of ranker and towers"
            raise PredictionError(f"the {model}: {error}") from None

    def _joined(self, numbers: Tensor, cross: Columns | None) -> Tensor:
        """Put crosses behind the ad's own numbers, as in `Schema.joined`."""
        if not self.schema.cross:
            return numbers
        joining = [(cross or {})[feature.name] for feature in self.schema.cross]
        return torch.cat([numbers, torch.from_numpy(np.stack(joining, axis=1))], dim=1)

    def logit_error(self, score_error: float) -> float:
        """Return what an error of the towers' score makes of the served click logit."""
        if self.towers is None:
            return 0.0
        scale = self.towers.calibration.log_scale.exp().item()
        return self.blend.towers * scale * score_error

    def inputs(
        self, user: TowerInput, ad_ids: Int64s, cross: Columns | None = None
    ) -> Inputs:
        """Look up one user and gather some ads.

        Args:
            user: of one row.
            ad_ids: (n,).
            cross: as of `score`.

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        of_user = self._vectors(self.ranker.user_tables, user, Side.USER)
        if self.looked_up is None:
            vectors, numbers = self._look_up(ad_ids)
        else:
            rows = torch.from_numpy(self.rows(ad_ids))
            vectors, numbers = (x.index_select(0, rows) for x in self.looked_up)
        return (of_user, vectors), user.dense, self._joined(numbers, cross)

    @torch.inference_mode()
    def look_up_ads(self, gigabytes: float) -> None:
        """Look up every ad now, so that a request only gathers rows.

        Args:
            gigabytes: what the vectors and numbers may take; where they take more, each
                request goes on looking up its own ads.
        """
        row = sum(x.nbytes for x in self._look_up(self.ids[:1]))
        if row * len(self.ids) > gigabytes * 1e9:
            return
        starts = range(0, len(self.ids), BLOCK)
        parts = [self._look_up(self.ids[start : start + BLOCK]) for start in starts]
        vectors, numbers = (torch.cat(side) for side in zip(*parts, strict=True))
        self.looked_up = vectors, numbers

    def _look_up(self, ad_ids: Int64s) -> tuple[Tensor, Tensor]:
        ads = self.features(ad_ids)
        return self._vectors(self.ranker.ad_tables, ads, Side.AD), ads.dense

    def _vectors(self, tables: Any, rows: TowerInput, side: Side) -> Tensor:
        names = [feature.name for feature in self.schema.bags_of(side)]
        return regroup(tables(rows.sparse), names)

    def features(self, ad_ids: Int64s) -> TowerInput:
        """Gather the catalog's features of some ads, one row each, as towers read them.

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        return tower_input(self._columns(ad_ids), self.schema, Side.AD)

    def _columns(self, ad_ids: Int64s) -> Columns:
        rows = self.rows(ad_ids)
        return {name: column[rows] for name, column in self.columns.items()}

    def rows(self, ad_ids: Int64s) -> Int64s:
        """Find the catalog's rows of some ads, (n,).

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        # An id that is not in the catalog gets the row of a neighbour here, so every
        # row must be compared before it is used.
        rows = np.searchsorted(self.ids, ad_ids).clip(max=len(self.ids) - 1)
        unknown = self.ids[rows] != ad_ids
        if unknown.any():
            raise ManifestError(
                f"ad {ad_ids[unknown][0]} of the index is not in the catalog;"
                " export and index again"
            )
        return np.asarray(rows, dtype=np.int64)
