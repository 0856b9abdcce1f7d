"""What a run with changes serves, beside brute force over all ads that there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from named_run import K, raw_user

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.serve.recommender import Recommender

ASKED, MEASURED = 300, 200  # users who ask, and whose recall is measured


@dataclass
class Served:
    """A run as it is served now, in this process.

    Attributes:
        run: its folder.
    """

    run: Path

    def __post_init__(self) -> None:
        self.recommender = Recommender.load(self.run)
        self.users = [raw_user(number) for number in range(ASKED)]
        self.vectors = np.concatenate([self._vector(user) for user in self.users])
        self.held_out = load_vectors(self.run / "export", "queries.parquet")[1]
        self.held_out = self.held_out[:MEASURED]
        self.exported = Exported(*load_vectors(self.run / "export"))

    def _vector(self, user: Any) -> Float32s:
        tower = self.recommender.retriever.tower
        vector: Float32s = tower(self.recommender.user_input(user)).detach().numpy()
        return vector

    def refresh(self) -> None:
        """Take over an update that was published."""
        self.recommender = self.recommender.refreshed(self.run)

    def ad_of(self, item: str) -> int:
        """Return the id of an ad by its name."""
        shown = self.recommender.scorer.shown.filter(pl.col("item") == item)
        return int(shown["ad_id"][0])

    def best_of(self, number: int) -> int:
        """Return the exported ad that is the best one of a user who asks."""
        products = self.exported.vectors @ self.vectors[number]
        return int(self.exported.ids[products.argmax()])

    def user_for(self, ad: int) -> int | None:
        """Return the user among whose best candidates the ad stands highest."""
        ids, vectors = self.now()
        mine = vectors[np.searchsorted(ids, ad)]
        above = (self.vectors @ vectors.T > (self.vectors @ mine)[:, None]).sum(axis=1)
        # Not at the end of the list, where lists that are not read may hold others.
        return int(above.argmin()) if above.min() < 0.8 * K else None

    def recall(self) -> float:
        """Measure the recall of the index with the changes, on held-out users."""
        index = self.recommender.retriever.index
        ids, vectors = self.now()
        exact = Exported(ids, vectors)
        answer, _ = index.search(self.held_out, K)
        known = np.isin(answer, ids)  # an update may have been published meanwhile
        answer[~known] = ids[0]
        products = exact.products(self.held_out, answer)
        products[~known] = -np.inf
        top = exact.exact_top(self.held_out, K)
        return round(float(exact.hits(top, products).mean()), 5)

    def now(self) -> tuple[Int64s, Float32s]:
        """Return ids and vectors of all ads that there are, by rising id."""
        changes = getattr(self.recommender.retriever.index, "changes", None)
        if changes is None:
            return self.exported.ids, self.exported.vectors
        kept = ~np.isin(self.exported.ids, changes.touched)
        ids = np.concatenate([self.exported.ids[kept], changes.ids])
        vectors = np.concatenate([self.exported.vectors[kept], changes.vectors])
        order = np.argsort(ids)
        return ids[order], vectors[order]
