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
        return self.joined(self.keys(user), 0, rows)

    def keys(self, users: RawColumns) -> KeyedColumns:
        """Hash the columns of some users that are joined with ads, once for all ads."""
        if self.statistics is None:
            return {}
        columns = dict.fromkeys((name,) for _, name in self.pairs)
        return self.statistics.keys.of(users, columns)

    def joined(
        self, users: KeyedColumns, user: int, rows: Int64s
    ) -> dict[str, Float32s]:
        """Compute the crosses of one of several users with some ads, as `of` does.

        Args:
            users: what `keys` returned.
            user: its row.
            rows: (n,) of the catalog.
        """
        if self.statistics is None or not self.pairs:
            return {}
        each = np.arange(len(rows))
        keyed: KeyedColumns = {}
        for ad, name in self.pairs:
            column = users[(name,)]
            key = column.keys[column.codes[user : user + 1]]
            keyed[(ad, name)] = KeyedColumn(
                pair_keys(self.ad_keys[ad][rows], key), each
            )
        return self.statistics.encode_keyed(self.features, keyed)
