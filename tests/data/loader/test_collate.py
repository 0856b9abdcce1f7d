"""A batch holds its columns, each under its own key, and the clicked rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_rows import ROWS, SCHEMA, columns, first_step

from torchrec_adrec.batch import anchor_bucket
from torchrec_adrec.data.loader.collate import batch_columns, collate, tower_input
from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.schema import (
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

NO_SPLIT = Split(groups=(), firsts=(), num_rows=0, weights=(), types={})


def test_keys_stand_in_schema_order_with_their_own_ids(tmp_path: Path) -> None:
    """A sharded collection would silently misread any other order."""
    values = columns()
    batch = collate(first_step(values, tmp_path), SCHEMA)
    assert batch.user.sparse.keys() == ["z", "a", "seen", "bought"]
    assert batch.ad.sparse.keys() == ["brand"]
    for tower, name in ((batch.user, "z"), (batch.user, "a"), (batch.ad, "brand")):
        assert tower.sparse[name].values().tolist() == values[name].tolist()
        assert tower.sparse[name].lengths().tolist() == [1] * ROWS
    assert batch.ad.sparse.values().dtype == torch.int32
    assert batch.ad.sparse.offsets().tolist() == list(range(ROWS + 1))
    assert batch.user.dense.T.tolist() == [
        values[n].tolist() for n in ("age", "visits")
    ]
    assert batch.ad.dense.T.tolist() == [values["price"].tolist()]
    labels = np.stack([values["click"], values["watched"]], axis=1)
    np.testing.assert_array_equal(batch.labels.numpy(), labels)
    assert batch.ad_ids.tolist() == values["ad_id"].tolist()
    assert batch.log_q.tolist() == values["log_q"].tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sequences_survive(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = columns(seed)
    folder = tmp_path_factory.mktemp("split")
    pl.DataFrame(values).write_parquet(folder / "part-0.parquet", row_group_size=5)
    reader = Reader(Split.open(folder), batch_columns(SCHEMA), 8, seed=seed)
    for rows in reader.epoch():
        user = collate(rows, SCHEMA).user.sparse
        for f in SCHEMA.sequences:
            table = np.stack([values[name] for name in f.columns], axis=1)
            expected = [
                [i for i in row if i >= 0] for row in table[rows.numbers].tolist()
            ]
            actual = user[f.name]
            assert [t.tolist() for t in actual.to_dense()] == expected
            assert actual.offsets()[-1] == sum(map(len, expected))


def test_a_row_without_history_is_an_empty_bag(tmp_path: Path) -> None:
    values = columns()
    for name in SCHEMA.sequences[0].columns:
        values[name][:] = -1
    history = collate(first_step(values, tmp_path), SCHEMA).user.sparse["seen"]
    assert history.lengths().tolist() == [0] * ROWS and not len(history.values())


def test_a_side_alone_needs_its_own_columns_only() -> None:
    values = {name: columns()[name] for name in SCHEMA.columns_of(Side.AD)}
    assert tower_input(values, SCHEMA, Side.AD).sparse.keys() == ["brand"]


def test_the_picture_of_a_tower_input_is_true() -> None:
    """The rows in the docstring of `tower_input`."""
    schema = Schema(
        dense=(),
        sparse=(
            SparseFeature(name="city", side=Side.USER, source="c", num_embeddings=9),
            SparseFeature(name="ad", side=Side.AD, source="ad", num_embeddings=9),
        ),
        sequences=(
            SequenceFeature(
                name="seen", side=Side.USER, source="s", max_length=3, num_embeddings=10
            ),
        ),
        labels=(Label(name="click"),),
    )
    table = {"city": [4, 7], "seen:0": [5, 9], "seen:1": [6, -1], "seen:2": [-1, -1]}
    values = {name: np.array(ids, dtype=np.int32) for name, ids in table.items()}
    ids = tower_input(values, schema, Side.USER).sparse
    assert ids.keys() == ["city", "seen"]
    assert ids.lengths().tolist() == [1, 1, 2, 1]
    assert ids.values().tolist() == [4, 7, 5, 6, 9]


@settings(max_examples=30, deadline=None)
@given(clicks=st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=1, max_size=300))
def test_anchors_are_the_clicked_rows_that_count(clicks: list[float]) -> None:
    count = len(clicks)
    values = {name: np.resize(column, count) for name, column in columns().items()}
    values["click"] = np.array(clicks, np.float32)
    weights = np.where(np.arange(count) % 5 == 4, 0, 0.5 + np.arange(count))
    batch = collate(StepRows(values, weights.astype(np.float32), NO_SPLIT, ()), SCHEMA)
    clicked = [r for r in range(count) if clicks[r] == 1 and weights[r] > 0]
    padding = len(batch.anchors) - len(clicked)
    assert batch.anchors.tolist() == clicked + [0] * padding
    anchor_weights = batch.anchor_weights.tolist()
    assert anchor_weights == [*weights[clicked].tolist(), *[0] * padding]
    assert batch.anchors.dtype == torch.int32
    assert len(batch.anchors) % anchor_bucket(count) == 0 and padding <= 64


def test_the_anchors_of_a_run_have_one_or_two_shapes() -> None:
    """A quarter of the rows is clicked, give or take four deviations."""
    for rows, size in ((32, 64), (2048, 128), (3000, 256), (8192, 512), (65536, 4096)):
        assert anchor_bucket(rows) == size
        spread = 4 * (rows * 0.25 * 0.75) ** 0.5
        shapes = {round(rows / 4 + s * spread) // size for s in (-1, 0, 1)}
        assert len(shapes) <= 2
