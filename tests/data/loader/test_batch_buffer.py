"""A batch is one buffer, which moves to a device as a whole."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed_rows import ROWS, SCHEMA, columns, first_step, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

from torchrec_adrec.batch import Batch
from torchrec_adrec.data.loader.collate import collate
from torchrec_adrec.data.loader.parquet import StepRows


@pytest.fixture
def rows(tmp_path: Path) -> StepRows:
    return first_step(columns(), tmp_path)


def test_a_batch_is_one_buffer_and_moves_whole(rows: StepRows) -> None:
    batch = collate(rows, SCHEMA)
    buffer = batch.buffer.untyped_storage()
    shared = batch.ad.sparse.lengths()  # of one id each: the same in every batch
    assert shared is collate(rows, SCHEMA).ad.sparse.lengths()
    for part in tensors_of(batch):
        assert part is shared or part.untyped_storage().data_ptr() == buffer.data_ptr()
        assert part.is_contiguous() and part.data_ptr() % 16 == 0
    moved = Batch(batch.buffer.clone(), batch.layout)  # as `to` another device does
    for before, after in zip(tensors_of(batch), tensors_of(moved), strict=True):
        np.testing.assert_array_equal(before.numpy(), after.numpy())
    assert batch.to(torch.device("cpu")) is batch


def test_a_move_is_one_copy_and_asks_the_device_for_nothing(rows: StepRows) -> None:
    """`meta` stands for a device: it has no values that could be read."""
    batch, device = collate(rows, SCHEMA), torch.device("meta")
    batch.to(device)
    with Copies() as copies:  # type: ignore[no-untyped-call]
        moved = batch.to(device, non_blocking=True)
    assert copies.count == 1
    for before, after in zip(tensors_of(batch), tensors_of(moved), strict=True):
        assert after.device == device
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
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
        replace(batch, weights=batch.weights * 2)
