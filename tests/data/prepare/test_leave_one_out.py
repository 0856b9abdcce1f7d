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
    # Not in time order, and several rows at a time: of these the last one is later.
    rows = log().head(200).with_columns(pl.col("ts") // 4)
    rows = rows.drop("click") if is_positive else rows
    actual = prepared(tmp_path / "a", rows, table, split={"by": "leave_one_out"})
    click = pl.lit(1) if is_positive else pl.col("click")
    rows = rows.sort("ts", maintain_order=True)
    expected = Counter[tuple[str, str]]()
    for _, of_user in rows.with_columns(click=click).group_by("uid"):
        clicks = left = of_user["click"].sum()
        for item, clicked in of_user["item", "click"].rows():
            left -= clicked
            split = {0: "test", 1: "valid"}.get(left, "train")
            expected[item, split if clicks > 2 else "train"] += 1
    if is_positive:
        actual = actual.filter(pl.col("click") == 1)
    assert Counter(actual["name", "split"].rows()) == expected
    for name in ("test", "valid"):
        part = actual.filter(pl.col("click") == 1, pl.col("split") == name)
        assert part["user_key"].n_unique() == len(part) > 10
