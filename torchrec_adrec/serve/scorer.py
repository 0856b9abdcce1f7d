"""Candidates to click probabilities."""

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.collate import tower_input
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.schema import AD_ID, Schema, Side


class Scorer:
    """The ranker and the features of every ad.

    Attributes:
        shown: per ad what people look at: `ad_id` and the raw columns.
    """

    def __init__(
        self, ranker: nn.Module, schema: Schema, catalog: pl.DataFrame
    ) -> None:
        self.ranker, self.schema = ranker, schema
        self.ids = catalog[AD_ID].to_numpy()
        names = [
            f.name for f in (*schema.sparse_of(Side.AD), *schema.dense_of(Side.AD))
        ]
        self.columns = {name: catalog[name].to_numpy() for name in names}
        raw = [f"raw_{f.source}" for f in schema.sparse_of(Side.AD)]
        self.shown = catalog.select(AD_ID, *raw).rename(
            lambda n: n.removeprefix("raw_")
        )

    @torch.inference_mode()
    def score(self, user: TowerInput, ad_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(click) of each ad for a user of one row, (N,).

        Raises:
            ManifestError: an ad that the catalog does not hold.
        """
        at = np.searchsorted(self.ids, ad_ids).clip(max=len(self.ids) - 1)
        strange = self.ids[at] != ad_ids
        if strange.any():
            raise ManifestError(
                f"ad {ad_ids[strange][0]} of the index is not in the catalog;"
                " export and index again"
            )
        columns = {name: column[at] for name, column in self.columns.items()}
        ads = tower_input(columns, self.schema, Side.AD)
        logits = self.ranker(user, ads)
        return np.asarray(torch.sigmoid(logits[:, 0].double()).numpy())
