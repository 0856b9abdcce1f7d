"""Columns of both sides for tests of rankers: ids, numbers, a history, two labels."""

import numpy as np

from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

SIZES = {"country": 5, "device": 4, "campaign": 7, "format": 3}
SCHEMA = Schema(
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(name="price", side=Side.AD, source="price"),
    ),
    sparse=tuple(
        SparseFeature(name=name, side=side, source=name, num_embeddings=SIZES[name])
        for side, names in (
            (Side.USER, ("country", "device")),
            (Side.AD, ("campaign", "format")),
        )
        for name in names
    ),
    sequences=(
        SequenceFeature(
            name="seen",
            side=Side.USER,
            source="seen",
            kind="hex",
            max_length=3,
            num_embeddings=SIZES["campaign"],
            shares_ids_with="campaign",
        ),
    ),
    labels=(Label(name="click"), Label(name="value", kind="value", mean=3.0)),
)


def columns_of(side: Side, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random columns of a side, as the catalog or the encoder gives them."""
    rng = np.random.default_rng(seed)
    columns = {
        f.name: rng.normal(size=count).astype(np.float32) for f in SCHEMA.dense_of(side)
    }
    for feature in SCHEMA.bags_of(side):
        names = getattr(feature, "columns", (feature.name,))
        for name in names:
            ids = rng.integers(feature.num_embeddings, size=count)
            columns[name] = ids.astype(np.int32)
    return columns
