"""The encoder, which turns raw columns into the ids and numbers that a model reads.

`prepare` and serving run this same code, so a request is encoded just as the training
rows were.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Bools, Float32s, Int32s, Int64s
from torchrec_adrec.config.data import Bounds, DataConfig
from torchrec_adrec.data.column import Column, RawColumns, jagged_column, scalar_column
from torchrec_adrec.data.prepare.counts import Counts
from torchrec_adrec.data.prepare.feature_keys import (
    feature_keys,
    floats,
    load_vocabulary,
    values_and_counts,
    with_table_sizes,
)
from torchrec_adrec.data.prepare.numeric import Quantiles, Transform
from torchrec_adrec.data.prepare.statistics import Statistics
from torchrec_adrec.data.prepare.text_vectors import DistinctFolder
from torchrec_adrec.data.prepare.vocabulary import (
    MISSING,
    UNKNOWN,
    Frequent,
    Hashed,
    Vocabulary,
)
from torchrec_adrec.data.vectors import FOLDER, with_indicator
from torchrec_adrec.errors import DataError, SchemaError
from torchrec_adrec.runtime.files import check_hashes
from torchrec_adrec.schema import Bag, DenseFeature, Schema, Side

PAD = -1  # fills a sequence up behind its last id


class NotFiniteError(DataError):
    """A number is not finite after its transform.

    Args:
        message: the text of the error.
        row: position of the row in the encoded columns.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Encoder:
    """A schema together with its fitted vocabularies and transforms.

    Attributes:
        schema: the features, with their tables' sizes.
        vocabularies: by the name of a sparse or sequence feature.
        transforms: by the name of a dense feature.
        quantiles: by the name of a feature whose buckets are quantiles.
        bounds: what to do with a number that is not finite, raw or transformed.
        repaired: by feature, the rows in which `bounds` made it 0 or unknown.
        statistics: what the training rows tell about values; None: the data have none.
        vectors: of raw values; None: the data have none.

    Fitted on counts of the training rows, then applied to any rows:

    >>> import polars as pl
    >>> from torchrec_adrec.schema import Label, SparseFeature
    >>> city = SparseFeature(name="city", side=Side.USER, source="city", kind="text")
    >>> brand = SparseFeature(name="brand", side=Side.AD, source="brand", kind="text")
    >>> age = DenseFeature(name="age", side=Side.USER, source="age")
    >>> schema = Schema(
    ...     dense=(age,), sparse=(city, brand), labels=(Label(name="click"),)
    ... )
    >>> counts = {
    ...     "age": pl.DataFrame({"value": [20, 40], "count": [8, 6]}),
    ...     "city": pl.DataFrame({"value": ["Bonn", "Rome"], "count": [5, 9]}),
    ...     "brand": pl.DataFrame({"value": ["Acme"], "count": [14]}),
    ... }
    >>> encoder = Encoder.fit(schema, counts, DataConfig(min_count=2))
    >>> raw: RawColumns = {
    ...     "age": Column.of(pl.Series([20, None, 40])),
    ...     "city": Column.of(pl.Series(["Rome", "Oslo", None])),
    ... }
    >>> encoded = encoder.encode(raw, Side.USER)
    >>> encoded["city"].tolist()  # the most frequent, an unknown, a missing one
    [2, 1, 0]
    >>> (encoded["age"] > 0).tolist()  # below the mean, missing (0, the mean), above
    [False, False, True]
    """

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    transforms: Mapping[str, Transform]
    quantiles: Mapping[str, Quantiles]
    bounds: Bounds = "raise"
    repaired: dict[str, int] = field(default_factory=dict)
    statistics: Statistics | None = None
    vectors: DistinctFolder | None = None

    @classmethod
    def fit(cls, schema: Schema, counts: Counts, config: DataConfig) -> "Encoder":
        """Fit every feature and fill in the sizes of the tables.

        Args:
            schema: features of unknown table sizes.
            counts: the raw values of the training rows, and of no others.
            config: says how ids are given, and from which count on.
        """
        transforms = {
            f.name: Transform.fit(f, *values_and_counts(counts[f.source]))
            for f in schema.dense
        }
        quantiles = {
            f.name: Quantiles.fit(f.name, *values_and_counts(counts[f.source]))
            for f in schema.sparse
            if f.buckets == "quantile"
        }
        vocabularies: dict[str, Vocabulary] = {}
        for f in schema.bags:
            if config.ids == "hash":
                vocabularies[f.name] = Hashed(f.name, config.hash_size)
            else:
                frame = counts[f.source]
                value_keys = feature_keys(f, frame["value"], quantiles)
                rows = frame["count"].to_numpy()
                vocabularies[f.name] = Frequent.fit(value_keys, rows, config.min_count)
        # Such a sequence is looked up in the other feature's table, so both must give a
        # value the same id; the counts of its own values are not used.
        for sequence in schema.sequences:
            if sequence.shares_ids_with is not None:
                vocabularies[sequence.name] = vocabularies[sequence.shares_ids_with]
        sized = with_table_sizes(schema, vocabularies)
        return cls(sized, vocabularies, transforms, quantiles, config.bounds)

    def encode(
        self, raw: RawColumns, side: Side, folds: Int64s | None = None
    ) -> dict[str, NDArray[Any]]:
        """Encode the columns of one side, as models read them.

        Args:
            raw: at least the raw columns of this side.
            side: whose features.
            folds: (B,) the folds of training rows (`Statistics.encode`); only `prepare`
                gives them, and None means that no row was trained on.

        Returns:
            By feature, (B,) int32 ids or (B,) float32 numbers. A sequence becomes one
            column of ids for each of its positions, a vector (B, width) float32.

        Raises:
            SchemaError: a raw column is missing.
            NotFiniteError: a number is not finite, before or after its transform.
            ConfigError: a text that is new, and its encoder is not installed.
        """
        encoded = self.encode_scalars(raw, side, folds)
        for vector in self.schema.vectors_of(side):
            assert self.vectors is not None, "the schema has vectors"
            column = scalar_column(raw, vector.source)
            rows = with_indicator(self.vectors.components(vector, column.values))
            encoded[vector.name] = rows.take(column.codes, axis=0, mode="wrap")
        return encoded

    def encode_rows(
        self, raw: RawColumns, side: Side, folds: Int64s | None = None
    ) -> dict[str, NDArray[Any]]:
        """Encode the columns of one side, as they stand in the splits' Parquet files.

        They are those of `encode`, but a vector is its place among the distinct ones.
        """
        encoded = self.encode_scalars(raw, side, folds)
        for vector in self.schema.vectors_of(side):
            assert self.vectors is not None, "the schema has vectors"
            column = scalar_column(raw, vector.source)
            places = self.vectors.position(vector, column.values)
            encoded[vector.name] = column.spread(places, MISSING)
        return encoded

    def encode_scalars(
        self, raw: RawColumns, side: Side, folds: Int64s | None = None
    ) -> dict[str, NDArray[Any]]:
        """Encode all but the vectors; see `encode`."""
        missing = sorted(set(self.schema.sources_of(side)) - set(raw))
        if missing:
            raise SchemaError(
                f"columns {missing} are missing; expected"
                f" {list(self.schema.sources_of(side))}, found {list(raw)}"
            )
        # All work is done once per distinct value and then spread over the rows.
        encoded: dict[str, NDArray[Any]] = {}
        for dense in self.schema.numbers_of(side):
            encoded[dense.name] = self._number(dense, scalar_column(raw, dense.source))
        for sparse in self.schema.sparse_of(side):
            column = scalar_column(raw, sparse.source)
            encoded[sparse.name] = column.spread(self._ids(sparse, column), MISSING)
        for sequence in self.schema.sequences_of(side):
            bags = jagged_column(raw, sequence.source)
            ids = bags.items.spread(self._ids(sequence, bags.items), MISSING)
            padded = bags.last(ids, sequence.max_length, PAD)
            encoded |= dict(zip(sequence.columns, padded.T, strict=True))
        features = self.schema.statistics_of(side)
        if features:
            assert self.statistics is not None, "the schema has statistics"
            encoded |= self.statistics.encode(features, raw, folds)
        return encoded

    def encode_cross(
        self, raw: RawColumns, folds: Int64s | None = None
    ) -> dict[str, Float32s]:
        """Encode the crosses of rows with both sides, (B,) by feature; see `encode`."""
        if self.statistics is None:
            return {}
        return self.statistics.encode(self.schema.cross, raw, folds)

    def _ids(self, feature: Bag, column: Column) -> Int32s:
        """Return the id of each distinct value."""
        value_keys = feature_keys(feature, column.values, self.quantiles)
        ids = self.vocabularies[feature.name].encode(value_keys)
        # NaN and infinities have a bucket like any number (`log_square`), so without
        # this check they would pass for ordinary values.
        if feature.kind == "number":
            wrong = ~np.isfinite(floats(column.values))
            if self._repairs(feature.name, feature.source, column, wrong):
                ids[wrong] = UNKNOWN
        return ids

    def _number(self, feature: DenseFeature, column: Column) -> Float32s:
        numbers = self.transforms[feature.name].apply(floats(column.values))
        wrong = ~np.isfinite(numbers)
        if self._repairs(feature.name, feature.source, column, wrong):
            numbers[wrong] = 0.0
        return column.spread(numbers, 0.0)

    def _repairs(self, name: str, source: str, column: Column, wrong: Bools) -> bool:
        """Return whether wrong values are to be repaired, and count their rows.

        Raises:
            NotFiniteError: there are some, and `bounds` refuses them.
        """
        if not wrong.any():
            return False
        rows = column.spread(wrong, False)
        if self.bounds == "raise":
            row = int(np.argmax(rows))
            raise NotFiniteError(
                f"{source} is {column.values[int(column.codes[row])]!r}, expected a"
                f" number that is finite, also as {name}",
                row,
            )
        self.repaired[name] = self.repaired.get(name, 0) + int(rows.sum())
        return True

    def save(self, folder: Path) -> None:
        """Write `schema.json`, `transforms.json`, `vocabulary/` and `statistics/`."""
        (folder / "vocabulary").mkdir()
        for name, vocabulary in self.vocabularies.items():
            if isinstance(vocabulary, Frequent):
                path = folder / f"vocabulary/{name}.parquet"
                vocabulary.to_frame().write_parquet(path)
        fitted = {
            "transforms": [t.model_dump() for t in self.transforms.values()],
            "quantiles": [q.model_dump() for q in self.quantiles.values()],
        }
        (folder / "transforms.json").write_text(json.dumps(fitted, indent=1) + "\n")
        if self.statistics is not None:
            self.statistics.save(folder)
        self.schema.save(folder / "schema.json")

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """Read an encoder that `save` wrote.

        Raises:
            ManifestError: a file is missing or changed.
        """
        check_hashes(folder)
        schema = Schema.load(folder / "schema.json")
        vocabularies = {f.name: load_vocabulary(folder, f) for f in schema.bags}
        fitted = json.loads((folder / "transforms.json").read_text())
        transforms = [Transform.model_validate(t) for t in fitted["transforms"]]
        quantiles = [Quantiles.model_validate(q) for q in fitted["quantiles"]]
        return cls(
            schema,
            vocabularies,
            {t.name: t for t in transforms},
            {q.name: q for q in quantiles},
            statistics=Statistics.load(folder),
            vectors=DistinctFolder(folder / FOLDER) if schema.vectors else None,
        )
