"""What an encoder asks of a single feature: its keys, its vocabulary, its table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.numeric import Quantiles, log_square
from torchrec_adrec.data.prepare.vocabulary import Frequent, Hashed, Vocabulary
from torchrec_adrec.schema import Bag, Schema, SequenceFeature


def load_vocabulary(folder: Path, feature: Bag) -> Vocabulary:
    """Read a feature's vocabulary; a feature that has no file is hashed.

    A lost file cannot be mistaken for hashed ids: `hashes.json` names all files.
    """
    path = folder / f"vocabulary/{feature.name}.parquet"
    if path.exists():
        return Frequent.from_frame(pl.read_parquet(path))
    shared = feature.shares_ids_with if isinstance(feature, SequenceFeature) else None
    return Hashed(shared or feature.name, feature.num_embeddings)


def with_table_sizes(schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> Schema:
    """Fill in the sizes of the tables."""

    def sized(features: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            f.model_copy(update={"num_embeddings": vocabularies[f.name].num_embeddings})
            for f in features
        )

    update = {"sparse": sized(schema.sparse), "sequences": sized(schema.sequences)}
    return schema.model_copy(update=update)


def floats(values: pl.Series) -> Float64s:
    """Return numbers as doubles, (V,)."""
    return values.cast(pl.Float64).to_numpy()


def values_and_counts(counts: pl.DataFrame) -> tuple[Float64s, Int64s]:
    """Return the distinct numbers of a column and how often each occurs, (V,) each."""
    return floats(counts["value"]), counts["count"].to_numpy()


def feature_keys(
    feature: Bag, values: pl.Series, quantiles: Mapping[str, Quantiles]
) -> Int64s:
    """Return the key under which a feature's vocabulary holds each value."""
    if isinstance(feature, SequenceFeature) or feature.buckets is None:
        return keys(values)
    if feature.buckets == "quantile":
        return quantiles[feature.name].bucket(floats(values))
    return log_square(floats(values))
