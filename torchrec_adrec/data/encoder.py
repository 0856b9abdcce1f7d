"""Raw columns to model inputs: the same code in `prepare` and in serving."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchrec_adrec.data.numeric import Standardize, bucket
from torchrec_adrec.data.vocabulary import Vocabulary
from torchrec_adrec.errors import DataError, SchemaError
from torchrec_adrec.files import check_hashes
from torchrec_adrec.schema import Schema, Side, SparseFeature


def raw_value(feature: SparseFeature) -> pl.Expr:
    """What the vocabulary of a feature is fitted on."""
    column = pl.col(feature.source)
    return bucket(column) if feature.bucketed else column


def _check_finite(name: str, values: NDArray[np.float32], raw: pl.DataFrame) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(
            f"{name} is {raw[name][row]!r} in row {row} and becomes {values[row]},"
            " expected a finite number"
        )


@dataclass(frozen=True)
class Encoder:
    """A schema with its fitted transforms, by feature name."""

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    numerics: Mapping[str, Standardize]

    @classmethod
    def fit(cls, schema: Schema, train: pl.LazyFrame, min_count: int) -> "Encoder":
        """Fit every column on the training rows alone and fill in the table sizes."""
        vocabularies = {}
        for feature in schema.sparse:
            value = train.select(value=raw_value(feature)).group_by("value")
            counts = value.agg(count=pl.len()).collect(engine="streaming")
            vocabularies[feature.name] = Vocabulary.fit(counts, min_count)
        numerics = {f.name: Standardize.fit(f.name, train) for f in schema.dense}
        sizes = {name: v.num_embeddings for name, v in vocabularies.items()}
        sized = [
            f.model_copy(update={"num_embeddings": sizes[f.name]})
            for f in schema.sparse
        ]
        return cls(
            schema.model_copy(update={"sparse": tuple(sized)}), vocabularies, numerics
        )

    def encode(self, raw: pl.DataFrame, side: Side) -> dict[str, NDArray[Any]]:
        """One column per feature of a side: (B,) int32 ids, (B,) float32 numbers.

        Raises:
            SchemaError: a raw column is not there.
            DataError: a number that is not finite after its transform.
        """
        sparse, dense = self.schema.sparse_of(side), self.schema.dense_of(side)
        needed = {f.source for f in sparse} | {f.name for f in dense}
        lacking = sorted(needed - set(raw.columns))
        if lacking:
            raise SchemaError(
                f"columns {lacking} are missing; expected {sorted(needed)},"
                f" found {raw.columns}"
            )
        # One query for all columns: one per column took 34 ms a request, this 13.
        found = raw.select(
            *(self.numerics[d.name].expression().alias(d.name) for d in dense),
            *(raw_value(f).fill_null(0).cast(pl.Int64).alias(f.name) for f in sparse),
            *(raw_value(f).is_null().alias(f"{f.name}:missing") for f in sparse),
        )
        columns: dict[str, NDArray[Any]] = {
            d.name: found[d.name].to_numpy() for d in dense
        }
        for f in sparse:
            missing = found[f"{f.name}:missing"].to_numpy()
            columns[f.name] = self.vocabularies[f.name].encode(
                found[f.name].to_numpy(), missing
            )
        for d in dense:
            _check_finite(d.name, columns[d.name], raw)
        return columns

    def save(self, folder: Path) -> None:
        """Write `schema.json`, `numeric.json` and `vocabulary/*.parquet`."""
        (folder / "vocabulary").mkdir()
        for name, vocabulary in self.vocabularies.items():
            vocabulary.to_frame().write_parquet(folder / f"vocabulary/{name}.parquet")
        fitted = [n.model_dump() for n in self.numerics.values()]
        (folder / "numeric.json").write_text(json.dumps(fitted, indent=1) + "\n")
        self.schema.save(folder / "schema.json")

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """Read what `save` wrote.

        Raises:
            ManifestError: a file is missing or changed.
        """
        check_hashes(folder)
        schema = Schema.load(folder / "schema.json")
        vocabularies = {
            f.name: Vocabulary.from_frame(
                pl.read_parquet(folder / f"vocabulary/{f.name}.parquet")
            )
            for f in schema.sparse
        }
        fitted = json.loads((folder / "numeric.json").read_text())
        numerics = {n["name"]: Standardize.model_validate(n) for n in fitted}
        return cls(schema, vocabularies, numerics)
