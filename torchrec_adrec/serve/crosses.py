"""What joins one user with each candidate: a lookup for every pair of columns."""

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.prepare.ad_keys import key_column
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.statistics import by_sources
from torchrec_adrec.data.prepare.value_keys import KeyedColumn, KeyedColumns, pair_keys


class Crosses:
    """The crosses of a user with ads of the catalog.

    Args:
        encoder: fitted by `adrec prepare`.
        catalog: holds the keys of every ad.
    """

    def __init__(self, encoder: Encoder, catalog: pl.DataFrame) -> None:
        self.features, self.statistics = encoder.schema.cross, encoder.statistics
        self.pairs = [(ad, user) for ad, user in by_sources(self.features)]
        self.ad_keys = {ad: catalog[key_column(ad)].to_numpy() for ad, _ in self.pairs}

    def of(self, user: RawColumns, rows: Int64s) -> dict[str, Float32s]:
        """Compute the crosses of a user with some ads, (n,) by feature.

        The keys are those of `prepare`, and so is all that follows from them.

        Args:
            user: raw columns, of one row.
            rows: (n,) of the catalog.
        """
        if self.statistics is None or not self.pairs:
            return {}
        columns = dict.fromkeys((name,) for _, name in self.pairs)
        user_keys = self.statistics.keys.of(user, columns)
        each = np.arange(len(rows))
        keyed: KeyedColumns = {}
        for ad, name in self.pairs:
            column = user_keys[(name,)]
            mixed = pair_keys(self.ad_keys[ad][rows], column.keys[column.codes])
            keyed[(ad, name)] = KeyedColumn(mixed, each)
        return self.statistics.encode_keyed(self.features, keyed)
