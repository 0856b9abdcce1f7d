"""Histories of new users by hand, and rows that know what is asked for."""

import numpy as np
import polars as pl
import pytest
from classics_clicks import table

from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.new_users import history_columns
from torchrec_adrec.evaluation.classics.towers import refuse_asked
from torchrec_adrec.schema import SequenceFeature, Side


def test_a_history_has_the_latest_items_oldest_first() -> None:
    """Fails when the order is reversed, or a place is another one."""
    items = np.array([10, 11, 0, 13, 14, 1], dtype=np.int32)  # ad 2 has no item
    clicks = table([[4, 1, 3, 0], [2, 5], [2], [], [3]], ads=6)
    clicks.data[-1] = 1  # numbers compare within a user alone
    assert history_columns(clicks, items, 3).tolist() == [
        [11, 13, 10],
        [1, -1, -1],
        [-1, -1, -1],
        [-1, -1, -1],
        [13, -1, -1],
    ]


def test_an_item_that_is_asked_for_may_be_known_as_another_ad() -> None:
    history = SequenceFeature(name="h", side=Side.USER, source="h", max_length=2)
    histories = pl.DataFrame(
        {"h:0": [5, 5], "h:1": [6, -1]},
        schema_overrides={"h:0": pl.Int32, "h:1": pl.Int32},
    )
    items = np.array([5, 5, 6, 7], dtype=np.int32)
    known, held = table([[0, 2], [0]], 4), table([[1, 3], [3]], 4)
    refuse_asked(history, histories, items, known, held)
    with pytest.raises(DataError, match="1 of 2 users"):
        refuse_asked(
            history, histories, items, table([[0], [0]], 4), table([[2], [3]], 4)
        )
