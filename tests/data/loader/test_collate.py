from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torchrec_adrec.batch import Batch, anchor_bucket
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, collate, tower_input
from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

ROWS = 32
SCHEMA = Schema(
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(name="price", side=Side.AD, source="price"),
        DenseFeature(name="visits", side=Side.USER, source="visits"),
    ),
    sparse=(
        SparseFeature(name="z", side=Side.USER, source="z", num_embeddings=13),
        SparseFeature(name="brand", side=Side.AD, source="brand", num_embeddings=7),
        SparseFeature(name="a", side=Side.USER, source="a", num_embeddings=40),
    ),
    sequences=(
        SequenceFeature(
            name="seen", side=Side.USER, source="s", max_length=3, num_embeddings=50
        ),
        SequenceFeature(
            name="bought", side=Side.USER, source="b", max_length=2, num_embeddings=9
        ),
    ),
    labels=(Label(name="click"), Label(name="watched", kind="value", max_value=60)),
)


def history(rng: np.random.Generator, feature: SequenceFeature) -> dict[str, Any]:
    """Left-packed ids, of lengths that reach from none to all."""
    lengths = rng.integers(0, feature.max_length + 1, ROWS)
    ids = rng.integers(0, feature.num_embeddings, (feature.max_length, ROWS))
    return {
        name: np.where(i < lengths, ids[i], -1).astype(np.int32)
        for i, name in enumerate(feature.columns)
    }


def columns(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        f.name: rng.standard_normal(ROWS).astype(np.float32) for f in SCHEMA.dense
    }
    for f in SCHEMA.sparse:
        made[f.name] = rng.integers(0, f.num_embeddings, ROWS).astype(np.int32)
    for s in SCHEMA.sequences:
        made |= history(rng, s)
    made["click"] = rng.integers(0, 2, ROWS).astype(np.float32)
    made["watched"] = rng.uniform(0, 60, ROWS).astype(np.float32)
    made["watched"][3] = made["click"][4] = np.nan
    made["ad_id"] = rng.integers(0, 2**62, ROWS)
    made["log_q"] = rng.standard_normal(ROWS).astype(np.float32)
    return made


Write = Callable[[dict[str, Any]], StepRows]


@pytest.fixture
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Columns -> Parquet -> the first step."""

    def through_parquet(made: dict[str, Any]) -> StepRows:
        folder = tmp_path_factory.mktemp("split")
        pl.DataFrame(made).write_parquet(folder / "part-00000.parquet")
        reader = Reader(Split.open(folder), batch_columns(SCHEMA), ROWS)
        return next(reader.epoch())

    return through_parquet


@pytest.fixture
def rows(write: Write) -> StepRows:
    return write(columns())


def test_keys_stand_in_schema_order_with_their_own_ids(rows: StepRows) -> None:
    """A sharded collection would silently misread any other order."""
    batch, made = collate(rows, SCHEMA), columns()
    assert batch.user.sparse.keys() == ["z", "a", "seen", "bought"]
    assert batch.ad.sparse.keys() == ["brand"]
    for tower, name in ((batch.user, "z"), (batch.user, "a"), (batch.ad, "brand")):
        assert tower.sparse[name].values().tolist() == made[name].tolist()
        assert tower.sparse[name].lengths().tolist() == [1] * ROWS
    assert batch.ad.sparse.values().dtype == torch.int32
    assert batch.ad.sparse.offsets().tolist() == list(range(ROWS + 1))
    assert batch.user.dense.T.tolist() == [made[n].tolist() for n in ("age", "visits")]
    assert batch.ad.dense.T.tolist() == [made["price"].tolist()]
    wanted = np.stack([made["click"], made["watched"]], axis=1)
    np.testing.assert_array_equal(batch.labels.numpy(), wanted)
    assert batch.ad_ids.tolist() == made["ad_id"].tolist()
    assert batch.log_q.tolist() == made["log_q"].tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sequences_survive(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = columns(seed)
    folder = tmp_path_factory.mktemp("split")
    pl.DataFrame(made).write_parquet(folder / "part-0.parquet", row_group_size=5)
    reader = Reader(Split.open(folder), batch_columns(SCHEMA), 8, seed=seed)
    for rows in reader.epoch():
        user = collate(rows, SCHEMA).user.sparse
        for f in SCHEMA.sequences:
            table = np.stack([made[name] for name in f.columns], axis=1)
            wanted = [
                [i for i in row if i >= 0] for row in table[rows.numbers].tolist()
            ]
            found = user[f.name]
            assert [t.tolist() for t in found.to_dense()] == wanted
            assert found.offsets()[-1] == sum(map(len, wanted))


def test_a_row_without_history_is_an_empty_bag(write: Write) -> None:
    made = columns()
    for name in SCHEMA.sequences[0].columns:
        made[name][:] = -1
    seen = collate(write(made), SCHEMA).user.sparse["seen"]
    assert seen.lengths().tolist() == [0] * ROWS and not len(seen.values())


BAD = [
    ("z", 999, "z is 999, expected 0 to 12"),
    ("brand", -1, "brand is -1, expected 0 to 6"),
    ("brand", 7, "brand is 7, expected 0 to 6"),
    ("seen:0", 50, "seen:0 is 50, expected -1 to 49"),
    ("bought:1", -2, "bought:1 is -2, expected -1 to 8"),
    ("age", np.nan, "age is nan, expected a finite number"),
    ("price", np.inf, "price is inf, expected a finite number"),
    ("click", 3, "click is 3.0, expected 0 or 1"),
    ("click", 0.5, "click is 0.5, expected 0 or 1"),
    ("watched", 61, "watched is 61.0, expected 0 to 60"),
    ("watched", -np.inf, "watched is -inf, expected 0 to 60"),
]


def spoilt(name: str, value: float) -> dict[str, Any]:
    made = columns()
    for history in ("seen", "bought"):  # so that no gap hides what is tested
        made[f"{history}:0"][5] = made[f"{history}:1"][5] = 2
    made[name][5] = value
    return made


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_value_out_of_range_is_named_with_file_and_row(
    write: Write, name: str, value: float, message: str
) -> None:
    with pytest.raises(DataError) as error:
        collate(write(spoilt(name, value)), SCHEMA)
    assert message in str(error.value)
    assert "part-00000.parquet, row group 0, row 5:" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, 2.5])
def test_an_id_that_is_no_whole_number(rows: StepRows, value: float) -> None:
    made = {**rows.columns, "z": rows.columns["z"].astype(np.float64)}
    made["z"][5] = value
    with pytest.raises(DataError, match=f"row 5: z is {value}, expected 0 to 12"):
        collate(replace(rows, columns=made), SCHEMA)


@pytest.mark.parametrize("bounds", ["raise", "clamp", "unknown"])
def test_an_id_behind_the_end_of_its_sequence_is_always_refused(
    write: Write, bounds: Any
) -> None:
    made = columns()
    made["seen:0"][5], made["seen:1"][5] = -1, 4
    with pytest.raises(DataError, match=r"row 5: seen is \[-1, 4, .*no id behind"):
        collate(write(made), SCHEMA, bounds)


MENDED = [  # column, value -> what clamp and unknown make of it
    ("z", 999, 12, 1),
    ("z", -7, 0, 1),
    ("seen:0", 50, 49, 1),
    ("age", np.nan, 0.0, 0.0),
    ("price", np.inf, "max", 0.0),
    ("price", -np.inf, "min", 0.0),
    ("click", 3, 1.0, np.nan),
    ("watched", 61, 60.0, np.nan),
    ("watched", -1, 0.0, np.nan),
]


@pytest.mark.parametrize("bounds", ["clamp", "unknown"])
@pytest.mark.parametrize(("name", "value", "clamped", "unknown"), MENDED)
def test_a_mended_value_is_counted_and_told(
    write: Write,
    caplog: pytest.LogCaptureFixture,
    bounds: Any,
    name: str,
    value: float,
    clamped: Any,
    unknown: float,
) -> None:
    made, repaired = spoilt(name, value), RepairCounts()
    if isinstance(clamped, str):
        clamped = getattr(np.delete(made[name], 5), clamped)()
    batches = [collate(write(made), SCHEMA, bounds, repaired) for _ in range(2)]
    wanted = {**made, name: made[name].copy()}
    wanted[name][5] = clamped if bounds == "clamp" else unknown
    for mine, other in zip(
        all_of(batches[1]), all_of(collate(write(wanted), SCHEMA)), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    assert repaired.counts == {name: 2}
    repaired.report()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and told[1].endswith(f"repaired: {name} 2")
    assert "part-00000.parquet, row group 0, row 5: " + name in told[0]


def test_nothing_is_said_of_good_rows(
    rows: StepRows, caplog: pytest.LogCaptureFixture
) -> None:
    repaired = RepairCounts()
    collate(rows, SCHEMA, "clamp", repaired)
    repaired.report()
    assert not repaired.counts and not caplog.records


def test_a_side_alone_needs_its_own_columns_only() -> None:
    made = {name: columns()[name] for name in SCHEMA.columns_of(Side.AD)}
    assert tower_input(made, SCHEMA, Side.AD).sparse.keys() == ["brand"]


def all_of(batch: Batch) -> list[torch.Tensor]:
    found = [batch.labels, batch.ad_ids, batch.log_q, batch.weights]
    found += [batch.anchors, batch.anchor_weights]
    for side in (batch.user, batch.ad):
        found += [side.dense, side.sparse.values(), side.sparse.lengths()]
    return found


def test_a_batch_is_one_buffer_and_moves_whole(rows: StepRows) -> None:
    batch = collate(rows, SCHEMA)
    buffer = batch.buffer.untyped_storage()
    shared = batch.ad.sparse.lengths()  # of one id each: the same in every batch
    assert shared is collate(rows, SCHEMA).ad.sparse.lengths()
    for part in all_of(batch):
        assert part is shared or part.untyped_storage().data_ptr() == buffer.data_ptr()
        assert part.is_contiguous() and part.data_ptr() % 16 == 0
    moved = Batch(batch.buffer.clone(), batch.layout)  # as `to` another device does
    for mine, other in zip(all_of(batch), all_of(moved), strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
    assert batch.to(torch.device("cpu")) is batch


def test_a_move_is_one_copy_and_asks_the_device_for_nothing(rows: StepRows) -> None:
    """`meta` stands for a device: it has no values that anybody could ask for."""
    batch, device = collate(rows, SCHEMA), torch.device("meta")
    batch.to(device)
    with Copies() as copies:
        moved = batch.to(device, non_blocking=True)
    assert copies.count == 1
    for mine, other in zip(all_of(batch), all_of(moved), strict=True):
        assert other.device == device
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
    for side, known in ((moved.user.sparse, batch.user), (moved.ad.sparse, batch.ad)):
        assert (
            side._length_per_key
            == known.sparse.lengths().view(-1, ROWS).sum(dim=1).tolist()
        )
        assert side.keys() == known.sparse.keys() and side.stride() == ROWS


class Copies(TorchDispatchMode):
    """Counts copies."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += "copy" in str(func)
        return func(*args, **(kwargs or {}))


def test_no_tensor_of_a_batch_can_be_replaced(rows: StepRows) -> None:
    """It would be lost on the way to a device."""
    batch = collate(rows, SCHEMA)
    with pytest.raises(FrozenInstanceError):
        batch.log_q = batch.log_q + 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="init=False"):
        replace(batch, weights=batch.weights * 2)  # type: ignore[call-arg]


@settings(max_examples=30, deadline=None)
@given(clicks=st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=1, max_size=300))
def test_anchors_are_the_clicked_rows_that_count(clicks: list[float]) -> None:
    count = len(clicks)
    made = {name: np.resize(column, count) for name, column in columns().items()}
    made["click"] = np.array(clicks, np.float32)
    weights = np.where(np.arange(count) % 5 == 4, 0, 0.5 + np.arange(count))
    batch = collate(StepRows(made, weights.astype(np.float32), Any, ()), SCHEMA)
    wanted = [r for r in range(count) if clicks[r] == 1 and weights[r] > 0]
    padding = len(batch.anchors) - len(wanted)
    assert batch.anchors.tolist() == wanted + [0] * padding
    found = batch.anchor_weights.tolist()
    assert found == [*weights[wanted].tolist(), *[0] * padding]
    assert batch.anchors.dtype == torch.int32
    assert len(batch.anchors) % anchor_bucket(count) == 0 and padding <= 64


def test_the_anchors_of_a_run_have_one_or_two_shapes() -> None:
    """A quarter of the rows is clicked, give or take four deviations."""
    for rows, size in ((32, 64), (2048, 128), (3000, 256), (8192, 512), (65536, 4096)):
        assert anchor_bucket(rows) == size
        spread = 4 * (rows * 0.25 * 0.75) ** 0.5
        shapes = {round(rows / 4 + s * spread) // size for s in (-1, 0, 1)}
        assert len(shapes) <= 2


def test_an_id_that_no_32_bits_hold_is_refused(rows: StepRows) -> None:
    """2**32 + 5 must not become 5."""
    for value in (2**32 + 5, 2**31, -(2**32) + 5):
        made = {**rows.columns, "z": rows.columns["z"].astype(np.int64)}
        made["z"][5] = value
        with pytest.raises(DataError, match=f"row 5: z is {value}, expected 0 to 12"):
            collate(replace(rows, columns=made), SCHEMA)


def test_tables_larger_than_an_id_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        SparseFeature(name="z", side=Side.USER, source="z", num_embeddings=2**31)
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        DataConfig(hash_size=2**31)
