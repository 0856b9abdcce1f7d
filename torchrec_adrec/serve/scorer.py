"""From candidates to click probabilities."""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from torchrec_adrec.arrays import Bools, Columns, Float32s, Float64s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ManifestError, PredictionError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.tasks.blend import ALONE, Blend
from torchrec_adrec.tasks.calibration import Calibrations
from torchrec_adrec.tasks.label_heads import prediction

BLOCK = 65_536  # ads of the catalog that are looked up at once

Scores = dict[str, Float64s]
# Of the ranker's dense part: vectors of both sides, the user's numbers, the ads'.
Inputs = tuple[Sequence[Tensor], Tensor, Tensor]


def shown(catalog: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Return `ad_id` and the raw columns of a catalog's ads, for people to read."""
    raw = [f"raw_{name}" for name in schema.shown_of(Side.AD)]
    return catalog.select(AD_ID, *raw).rename(lambda name: name.removeprefix("raw_"))


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
        changed_ids, removed: (M,) of ads that were added or replaced since, whose rows
            stand behind those of the catalog; and of ads that were removed.
        columns: the encoded features, (N + M,) each.
        shown: `ad_id` and the raw columns of each row, for people to read.
        looked_up: vectors (N, E) and numbers (N, F) of all ads, and what they add to a
            click logit of the towers (N,) where a blend reads it, once `look_up_ads`
            was called; `looked_up_later`: those of the M changed ads.
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
        self.looked_up: list[Tensor] | None = None
        self.looked_up_later: list[Tensor] | None = None
        self.ids = catalog[AD_ID].to_numpy()
        self.changed_ids = self.removed = np.empty(0, dtype=np.int64)
        self.read(catalog)

    def read(self, catalog: pl.DataFrame) -> None:
        """Take the features of every row of a catalog."""
        schema = self.schema
        names = schema.columns_of(Side.AD)
        self.columns = {name: catalog[name].to_numpy() for name in names}
        self.shown = shown(catalog, schema)

    @torch.inference_mode()
    def with_changes(self, catalog: pl.DataFrame, changes: Changes) -> Self:
        """Return a scorer of its catalog with changes; it shares all else with it."""
        other = copy(self)
        other.__dict__.pop("listed", None)
        other.changed_ids, other.removed = changes.ids, changes.removed
        other.read(changes.rows_behind(catalog))
        if other.looked_up is not None:
            count = len(self.ids)
            other.looked_up_later = other.look_up_rows(count, count + len(changes.ids))
        return other

    @cached_property
    def listed(self) -> pl.DataFrame:
        """`shown` of the ads that there are, each once, by rising id."""
        count = len(self.ids)
        touched = np.concatenate([self.changed_ids, self.removed])
        outdated = np.isin(self.ids, touched)
        kept = np.concatenate([~outdated, np.ones(len(self.shown) - count, dtype=bool)])
        return self.shown.filter(kept).sort(AD_ID)

    def show(self, ad_ids: Int64s) -> pl.DataFrame:
        """Return `ad_id` and the raw columns of some ads, in their order.

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        rows = self.rows(ad_ids)
        return pl.DataFrame([self.shown[AD_ID][rows], *self.shown_of(rows)])

    def shown_of(self, rows: Int64s) -> list[pl.Series]:
        """Return the raw columns of some rows, (n,) each."""
        # To gather from a whole frame, polars wakes other threads.
        names = (name for name in self.shown.columns if name != AD_ID)
        return [self.shown[name][rows] for name in names]

    @torch.inference_mode()
    def score(
        self,
        user: TowerInput,
        rows: Int64s,
        scores: Float32s,
        cross: Columns | None = None,
    ) -> Scores:
        """Predict each label for each ad and a user of one row: (n,) by label.

        Args:
            user: of one row.
            rows: (n,) of the ads.
            scores: (n,) inner products of the towers, which a blend reads.
            cross: (n,) each, what joins the user with these ads (`serve.crosses`).

        Raises:
            PredictionError: a prediction is not finite.
        """
        ads = self._ads(rows)
        logits = self.ranker.dense(*self._inputs(user, ads, cross))
        clicks = None
        if self.towers is not None:
            biases = [*self.towers.biases_of(Side.USER, user), *ads[2:]]
            clicks = self.towers.calibration.logits(torch.from_numpy(scores), biases)
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
        of_users = self.ranker.vectors_of(Side.USER, users)
        of_ads = self.ranker.vectors_of(Side.AD, ads)
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
        self, user: TowerInput, rows: Int64s, cross: Columns | None = None
    ) -> Inputs:
        """Look up one user and gather some ads.

        Args:
            user, rows, cross: as of `score`.
        """
        return self._inputs(user, self._ads(rows), cross)

    def _inputs(
        self, user: TowerInput, ads: Sequence[Tensor], cross: Columns | None
    ) -> Inputs:
        of_user = self.ranker.vectors_of(Side.USER, user)
        return (of_user, ads[0]), user.dense, self._joined(ads[1], cross)

    def _ads(self, rows: Int64s) -> list[Tensor]:
        """Gather what is looked up of some ads, or look it up."""
        if self.looked_up is None:
            return self._look_up(rows)
        return self._gathered(self.looked_up, rows)

    @torch.inference_mode()
    def look_up_ads(self, gigabytes: float) -> None:
        """Look up every ad now, so that a request only gathers rows.

        Args:
            gigabytes: what the vectors and numbers may take; where they take more, each
                request goes on looking up its own ads.
        """
        row = sum(x.nbytes for x in self._look_up(np.arange(1)))
        if row * len(self.ids) > gigabytes * 1e9:
            return
        count, changed = len(self.ids), len(self.changed_ids)
        self.looked_up = self.look_up_rows(0, count)
        self.looked_up_later = self.look_up_rows(count, count + changed)

    def look_up_rows(self, first: int, stop: int) -> list[Tensor] | None:
        """Look up the ads of some rows; None where there are none."""
        whole: list[Tensor] = []
        for start in range(first, stop, BLOCK):
            parts = self._look_up(np.arange(start, min(start + BLOCK, stop)))
            # Written to their places: all blocks and their sum would be twice as much.
            whole = whole or [x.new_empty(stop - first, *x.shape[1:]) for x in parts]
            for target, part in zip(whole, parts, strict=True):
                target[start - first :][: len(part)] = part
        return whole or None

    def _look_up(self, rows: Int64s) -> list[Tensor]:
        ads = tower_input(self._columns(rows), self.schema, Side.AD)
        # Their numbers without crosses: what towers were trained on.
        biases = [] if self.towers is None else self.towers.biases_of(Side.AD, ads)
        return [self.ranker.vectors_of(Side.AD, ads), ads.dense, *biases]

    def _gathered(self, looked_up: list[Tensor], rows: Int64s) -> list[Tensor]:
        """Gather what was looked up of some rows, of the catalog or behind it."""
        is_later = rows >= len(self.ids)
        if self.looked_up_later is None or not is_later.any():
            return [x.index_select(0, torch.from_numpy(rows)) for x in looked_up]
        first = torch.from_numpy(np.where(is_later, 0, rows))
        places = torch.from_numpy(np.flatnonzero(is_later))
        later = torch.from_numpy(rows[is_later] - len(self.ids))
        pairs = zip(looked_up, self.looked_up_later, strict=True)
        return [
            x.index_select(0, first).index_copy(0, places, y.index_select(0, later))
            for x, y in pairs
        ]

    def features(self, ad_ids: Int64s) -> TowerInput:
        """Gather the catalog's features of some ads, one row each, as towers read them.

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        return tower_input(self._columns(self.rows(ad_ids)), self.schema, Side.AD)

    def _columns(self, rows: Int64s) -> Columns:
        return {name: column[rows] for name, column in self.columns.items()}

    def rows(self, ad_ids: Int64s) -> Int64s:
        """Find the rows of some ads, (n,), of the catalog or behind it.

        Raises:
            ManifestError: an ad that the catalog does not hold, or that was removed.
        """
        # An id that is not in the catalog gets the row of a neighbour here, so every
        # row must be compared before it is used.
        rows, known = _places(self.ids, ad_ids)
        if len(self.removed):
            known &= ~_places(self.removed, ad_ids)[1]
        if len(self.changed_ids):
            later, is_changed = _places(self.changed_ids, ad_ids)
            rows = np.where(is_changed, len(self.ids) + later, rows)
            known |= is_changed
        if not known.all():
            raise ManifestError(
                f"ad {ad_ids[~known][0]} of the index is not in the catalog;"
                " export and index again"
            )
        return np.asarray(rows, dtype=np.int64)


def _places(ids: Int64s, ad_ids: Int64s) -> tuple[Int64s, Bools]:
    """Find ids among others that rise: the places, and whether they are there."""
    places = np.searchsorted(ids, ad_ids).clip(max=len(ids) - 1)
    return places, ids[places] == ad_ids
