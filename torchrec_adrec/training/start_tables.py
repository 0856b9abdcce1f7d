"""Starts the towers' tables of ads' and users' ids with vectors made elsewhere."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from torch import nn

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.catalog_columns import AdKey
from torchrec_adrec.data.prepare.feature_keys import load_vocabulary
from torchrec_adrec.data.prepare.vocabulary import FIRST, UNKNOWN
from torchrec_adrec.distributed.table_rows import set_rows
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.kept_vectors import KeptVectors, load_kept
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.schema import (
    AD_ID,
    NO_USER,
    USER_KEY,
    Schema,
    Side,
    SparseFeature,
)

log = logging.getLogger(__name__)
Rows = tuple[Int64s, Float32s]  # numbers of a table's rows, and their vectors


def start_tables(model: nn.Module, folder: Path, data: Path, schema: Schema) -> None:
    """Put the vectors of `retrieval.start_from` into the tables. Collective.

    The ads' vectors go to the table of the ads' id, and to that of a history of the
    same ids where it has one; the users' to that of the users' id.

    Args:
        model: the sharded towers, as they were initialised.
        folder: of the vectors.
        data: the prepared data set.
        schema: of the data.

    Raises:
        ConfigError: no table has those ids, or vectors are not as wide as the tables.
        ManifestError: they are missing, damaged, or were made from other rows.
    """
    kept = load_kept(folder, data)
    sizes = {n: tuple(t.size()) for n, t in model.state_dict().items() if table_of(n)}
    names = {table_of(name): name for name in sizes}
    started = {
        names[table]: rows
        for table, rows in _rows_of_tables(kept, data, schema)
        if table in names
    }
    if not started:
        raise ConfigError(
            f"retrieval.start_from: of the tables {', '.join(sorted(names)) or 'none'},"
            " none is that of the ads' or the users' ids; name a column of ids in the"
            " data, or leave start_from out"
        )
    for name, (rows, vectors) in started.items():
        count, width = sizes[name]
        if vectors.shape[1] != width:
            raise ConfigError(
                f"{folder} holds vectors of {vectors.shape[1]} numbers, the rows of"
                f" {table_of(name)} have {width}; make them anew by `adrec lightgcn"
                f" --dim {width}`, or set retrieval.embedding_dim"
            )
        log.info(
            f"{table_of(name)}: {len(rows):,} of {count:,} rows start with vectors of"
            f" {folder}, the others by chance"
        )
    set_rows(model, started)


def _rows_of_tables(
    kept: Mapping[Side, KeptVectors], data: Path, schema: Schema
) -> Iterator[tuple[str, Rows]]:
    ad, user = _ad_feature(data, schema), _user_feature(data, schema)
    if ad is not None:
        catalog = load_catalog(data)
        places = np.searchsorted(catalog[AD_ID].to_numpy(), kept[Side.AD].ids)
        rows = _told_apart(catalog[ad.name].to_numpy()[places], kept[Side.AD].vectors)
        yield f"{Side.AD}_{ad.name}", rows
        if schema.items_of(Side.AD) == ad.name:
            yield f"{Side.USER}_{schema.items_of(Side.USER)}", rows
    if user is not None:
        numbers = load_vocabulary(data, user).encode(kept[Side.USER].ids)
        rows = _told_apart(numbers, kept[Side.USER].vectors)
        yield f"{Side.USER}_{user.name}", rows


def _told_apart(numbers: np.ndarray, vectors: Float32s) -> Rows:
    """Leave out the rows of rare ids, and those that several ids share."""
    counts = np.bincount(numbers)
    is_single = (numbers >= FIRST) & (counts[numbers] == 1)
    return numbers[is_single].astype(np.int64), vectors[is_single]


def _ad_feature(data: Path, schema: Schema) -> SparseFeature | None:
    """The feature whose ids are the ads', if one column names an ad."""
    columns = AdKey.load(data).columns
    named = (f for f in schema.sparse_of(Side.AD) if (f.source,) == columns)
    return next((f for f in named if f.kind != "number"), None)


def _user_feature(data: Path, schema: Schema) -> SparseFeature | None:
    """The feature whose ids its vocabulary makes of the rows' user keys, if any."""
    features = [f for f in schema.sparse_of(Side.USER) if f.kind != "number"]
    part = min((data / "train").glob("*.parquet"))
    rows = pl.read_parquet(part, columns=[USER_KEY, *(f.name for f in features)])
    rows = rows.filter(pl.col(USER_KEY) != NO_USER)
    for feature in features:
        ids = load_vocabulary(data, feature).encode(rows[USER_KEY].to_numpy())
        if (ids > UNKNOWN).any() and np.array_equal(ids, rows[feature.name]):
            return feature
    return None
