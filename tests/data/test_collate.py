from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrec_adrec.data.collate import batch_columns, collate
from torchrec_adrec.data.parquet import Reader, Rows, Split
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side


@pytest.fixture
def schema(prepared: Path) -> Schema:
    return Schema.load(prepared / "schema.json")


@pytest.fixture
def rows(prepared: Path, schema: Schema) -> Rows:
    reader = Reader(Split.open(prepared / "train"), batch_columns(schema), 32)
    return next(reader.epoch())


def test_keys_stand_in_schema_order_with_their_own_ids(
    rows: Rows, schema: Schema
) -> None:
    """A sharded collection would silently misread any other order."""
    batch = collate(rows, schema)
    for side, tower in ((Side.USER, batch.user), (Side.AD, batch.ad)):
        names = [f.name for f in schema.sparse_of(side)]
        assert tower.sparse.keys() == names
        for name in names:
            assert tower.sparse[name].values().tolist() == rows.columns[name].tolist()
            assert tower.sparse[name].lengths().tolist() == [1] * 32
        assert tower.sparse.offsets().tolist() == list(range(32 * len(names) + 1))
    dense = [f.name for f in schema.dense_of(Side.USER)]
    for i, name in enumerate(dense):
        assert batch.user.dense[:, i].tolist() == rows.columns[name].tolist()
    assert batch.labels[:, 0].tolist() == rows.columns["click"].tolist()
    assert batch.ad_ids.tolist() == rows.columns["ad_id"].tolist()


def spoil(rows: Rows, name: str, value: float) -> Rows:
    column = rows.columns[name].astype(np.result_type(rows.columns[name], type(value)))
    column[5] = value
    return replace(rows, columns={**rows.columns, name: column})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("C3", 999, "C3 is 999, expected 0 to 12"),
        ("C15", -1, "C15 is -1, expected 0 to"),
        ("C3", np.nan, "C3 is nan, expected 0 to 12"),
        ("C3", 2.5, "C3 is 2.5, expected 0 to 12"),
        ("I4", np.nan, "I4 is nan, expected a finite number"),
        ("I4", np.inf, "I4 is inf, expected a finite number"),
        ("click", 3, "label click is 3.0, expected 0 or 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_file_and_row(
    rows: Rows, schema: Schema, name: str, value: float, message: str
) -> None:
    with pytest.raises(DataError) as error:
        collate(spoil(rows, name, value), schema)
    assert message in str(error.value)
    assert "part-000000000.parquet, row group 0, row 5" in str(error.value)


def test_a_batch_moves_whole(rows: Rows, schema: Schema) -> None:
    batch = collate(rows, schema)
    moved = batch.to(torch.device("cpu"))
    for side in ("user", "ad"):
        before, after = getattr(batch, side), getattr(moved, side)
        assert torch.equal(before.dense, after.dense)
        assert before.sparse.to_dict().keys() == after.sparse.to_dict().keys()
        assert torch.equal(before.sparse.values(), after.sparse.values())
    for name in ("labels", "weights", "ad_ids", "log_q"):
        assert getattr(moved, name) is not None
        assert torch.equal(getattr(batch, name), getattr(moved, name))
