"""The exported towers of a run as one more scorer beside the classics."""

from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.full_catalog import held_out_clicks
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.schema import USER_KEY, Schema

QUERIES = "queries.parquet"  # as `export` writes it


class Towers:
    """Inner products of exported vectors, of users as they were at their test click.

    Attributes:
        users: (U, D); 0 of users without a test click.
        ads: (N, D).
    """

    def __init__(self, users: Float32s, ads: Float32s) -> None:
        self.users, self.ads = users, ads

    @classmethod
    def load(cls, run: Path, data: Interactions, queries: int, seed: int) -> "Towers":
        """Read them from a run's export.

        Args:
            run: its folder.
            data: the clicks, which give users and ads their numbers.
            queries: `evaluation.queries` of the export.
            seed: of the run.

        Raises:
            DataError: not every test click was exported.
        """
        schema = Schema.load(run / "data/schema.json")
        clicks, total = held_out_clicks(run / "data", schema, queries, seed)
        ids, ads = load_vectors(run / "export")
        _, vectors = load_vectors(run / "export", QUERIES)
        if len(clicks) < total or len(vectors) != len(clicks):
            raise DataError(
                f"the export has {len(vectors):,} of {total:,} test clicks, and who is"
                " left out cannot be judged; run `adrec export` with"
                f" evaluation.queries={total}, or leave the towers out"
            )
        order = np.argsort(ids)
        if not np.array_equal(ids[order], data.ids):
            raise DataError(f"{run / 'export'} holds other ads than the catalog")
        keys = clicks[USER_KEY].to_numpy()
        first = np.unique(keys, return_index=True)[1]
        first = first[np.isin(keys[first], data.users)]
        users = np.zeros((len(data.users), vectors.shape[1]), dtype=np.float32)
        users[np.searchsorted(data.users, keys[first])] = vectors[first]
        return cls(users, ads[order])

    def scores(self, history: csr_matrix, users: Int64s | None) -> Float32s:
        """See `Scorer`.

        Raises:
            DataError: for a shortened history, whose users were not exported.
        """
        if users is None:
            raise DataError("exported users are known by their whole history alone")
        return self.users[users] @ self.ads.T
