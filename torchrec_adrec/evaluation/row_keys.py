"""What the rows of a split belong to: their user, and a segment that is judged apart.

No model reads these, so no batch holds them: they are read from the split's files by
the rows' numbers.

Shape letter: B rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.prepare.vocabulary import FIRST, MISSING, UNKNOWN
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import NO_USER, USER_KEY, Schema, Side, SparseFeature

FEW_VALUES = range(2, 21)  # of a column that may be the segment unasked
SHOWN_VALUES = 20
OTHERS = "others"
MOST_CLUSTERS = 100_000


@dataclass(frozen=True)
class RowKeys:
    """What judged rows belong to.

    Attributes:
        user: (B,) keys, `NO_USER` where there is none; None: the data names no user.
        segment: name of the column whose values are reported apart, if there is one.
        segment_names: (B,) its values, as people read them.
    """

    user: Int64s | None = None
    segment: str | None = None
    segment_names: NDArray[Any] | None = None

    def select(self, rows: Any) -> "RowKeys":
        """Keep some rows: an index of numpy."""
        user = None if self.user is None else self.user[rows]
        names = None if self.segment_names is None else self.segment_names[rows]
        return RowKeys(user, self.segment, names)

    def clusters(self, count: int) -> Int64s:
        """Number the groups of rows that are resampled together, (B,) from 0.

        Rows of one user are not independent of one another. A row whose user is not
        known is a group of its own.

        Args:
            count: B.
        """
        # More than so many are drawn in groups, which are independent of one another
        # too: the spread is the same, and the time bounded.
        rows = np.arange(count)
        if self.user is None:
            return rows % MOST_CLUSTERS
        # Keys of users are never negative.
        keys = np.where(self.user == NO_USER, -2 - rows, self.user)
        codes = np.unique(keys, return_inverse=True)[1]
        return np.asarray(codes % MOST_CLUSTERS, dtype=np.int64)


def check_segment(segment: str | None, schema: Schema) -> None:
    """Refuse a segment that is no sparse feature; None stands for the default.

    Raises:
        ConfigError: names the sparse features.
    """
    names = [feature.name for feature in schema.sparse]
    if segment is not None and segment not in names:
        raise ConfigError(
            f"train.segment is {segment!r}, expected a sparse feature:"
            f" {', '.join(names)}"
        )


def read_row_keys(
    data: Path, split: str, rows: Int64s, schema: Schema, segment: str | None = None
) -> RowKeys:
    """Read the keys of some rows of a split.

    Args:
        data: a prepared data set.
        split: its name.
        rows: (B,) their numbers in the split.
        schema: of the data.
        segment: name of a sparse feature; None: `default_segment`.

    Raises:
        ConfigError: `segment` is no sparse feature.
    """
    check_segment(segment, schema)
    features = {feature.name: feature for feature in schema.sparse}
    # In the order of names, in which `Split` numbers the rows too.
    files = sorted((data / split).glob("part-*.parquet"))
    table = pl.scan_parquet(files)
    few = [f.name for f in schema.sparse if _values(f) in FEW_VALUES]
    candidates = [segment] if segment else few
    columns = [n for n in (USER_KEY, *candidates) if n in table.collect_schema()]
    keys = table.select(columns).collect()[rows]
    user = keys[USER_KEY].to_numpy() if USER_KEY in columns else None
    name = segment or default_segment(keys.select(n for n in few if n in columns))
    if name is None:
        return RowKeys(user)
    return RowKeys(user, name, _names(keys[name], features[name], data))


def _values(feature: SparseFeature) -> int:
    return feature.num_embeddings - FIRST


def default_segment(ids: pl.DataFrame) -> str | None:
    """Choose the column whose value is known in most rows, of equal ones the first.

    Args:
        ids: of the columns that have few values.
    """
    known = {name: int((ids[name] > UNKNOWN).sum()) for name in ids.columns}
    return max(known, key=lambda name: known[name], default=None)


def _names(ids: pl.Series, feature: SparseFeature, data: Path) -> NDArray[Any]:
    """Name each row's value: an ad's as in the catalog, any other by its id."""
    names = {MISSING: "missing", UNKNOWN: "rare"}
    if feature.side == Side.AD and feature.kind != "number":
        catalog = pl.read_parquet(
            data / "catalog.parquet", columns=[feature.name, f"raw_{feature.source}"]
        )
        known = catalog.filter(pl.col(feature.name) > UNKNOWN).unique(feature.name)
        names = {i: str(value) for i, value in known.iter_rows()} | names
    counts = ids.value_counts(sort=True)
    shown = set(counts[ids.name].head(SHOWN_VALUES).to_list())
    labels = {
        i: names.get(i, f"id {i}") if i in shown else OTHERS
        for i in counts[ids.name].to_list()
    }
    return ids.replace_strict(labels, return_dtype=pl.String).to_numpy()
