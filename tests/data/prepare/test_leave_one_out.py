"""The split that tests on the last click of each user, against plain Python."""

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click_log import POSITIVES, TABLE, log, prepared


@pytest.mark.parametrize("table", [TABLE, POSITIVES])
def test_leave_one_out_tests_on_the_last_click(
    tmp_path: Path, table: dict[str, Any]
) -> None:
    """Users with fewer than three clicks are trained on; what follows a click is with
    it.
    """
    is_positive = table is POSITIVES
    rows = log().with_columns(ts=pl.int_range(pl.len())).head(200)
    rows = rows.drop("click") if is_positive else rows
    actual = prepared(tmp_path / "a", rows, table, split={"by": "leave_one_out"})
    click = pl.lit(1) if is_positive else pl.col("click")
    expected = Counter[str]()
    for _, of_user in rows.with_columns(click=click).group_by("uid"):
        left = of_user["click"].sum()
        for clicked in of_user["click"] if left > 2 else []:
            left -= clicked
            expected[{0: "test", 1: "valid"}.get(left, "train")] += 1
        if of_user["click"].sum() <= 2:
            expected["train"] += len(of_user)
    if is_positive:
        actual = actual.filter(pl.col("click") == 1)
    assert Counter(actual["split"]) == expected
    for name in ("test", "valid"):
        part = actual.filter(pl.col("click") == 1, pl.col("split") == name)
        assert part["user_key"].n_unique() == len(part) > 10
