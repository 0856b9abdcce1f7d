"""Pairs of columns: chosen for what they gain together, from training rows alone."""

from pathlib import Path

import numpy as np
import polars as pl
from statistics_rows import ROWS, SCALARS, TRAIN_ROWS, prepare_rows, raw_rows

from torchrec_adrec.schema import Schema


def decided_by_a_pair() -> pl.DataFrame:
    """Rows that are clicked if either `device` or `age` is odd, and not both."""
    either = np.arange(ROWS) % 2 != np.arange(ROWS) // 2 % 2
    draw = np.random.default_rng(1).random(ROWS)
    return raw_rows().with_columns(
        device=pl.Series([f"d{i % 2}" for i in range(ROWS)]),
        age=pl.Series([i // 2 % 2 for i in range(ROWS)]),
        click=pl.Series((draw < 0.1 + 0.6 * either).astype(int)),
    )


def test_labels_of_held_out_rows_change_nothing_that_is_fitted(tmp_path: Path) -> None:
    """Neither counts nor scales, nor which pairs are chosen and what they gain."""
    rows = decided_by_a_pair()
    turned = rows.with_columns(
        click=pl.concat(
            [rows["click"].head(TRAIN_ROWS), 1 - rows["click"].tail(ROWS - TRAIN_ROWS)]
        )
    )
    reports = [
        prepare_rows(tmp_path / name, frame, pairs=4)
        for name, frame in (("a", rows), ("b", turned))
    ]
    pairs = [
        [(p["first"], p["second"], p["gain"]) for p in report["statistics"]["pairs"]]
        for report in reports
    ]
    assert pairs[0] == pairs[1] and pairs[0]
    files = sorted((tmp_path / "a/statistics").iterdir())
    assert len(files) > 5
    for path in files:
        other = tmp_path / "b/statistics" / path.name
        assert other.read_bytes() == path.read_bytes(), path.name


def test_a_pair_that_decides_together_is_chosen_first(tmp_path: Path) -> None:
    report = prepare_rows(tmp_path / "a", decided_by_a_pair(), pairs=1)
    (pair,) = report["statistics"]["pairs"]
    assert {pair["first"], pair["second"]} == {"device", "age"}
    assert pair["gain"] > 0.1 and pair["auc"] > 0.75 > 0.6 > pair["auc_apart"]
    text = (tmp_path / "a/report.md").read_text()
    assert f"| {pair['first']} x {pair['second']} | {pair['gain']:.5f} |" in text


def test_pairs_of_random_columns_gain_nothing(tmp_path: Path) -> None:
    """Fails when a row's own click counts in the choice: `city` then wins."""
    report = prepare_rows(tmp_path / "a", raw_rows(), pairs=9)
    assert report["statistics"]["pairs"] == []


def test_pairs_are_of_one_side(prepared_rows: Path) -> None:
    schema = Schema.load(prepared_rows / "schema.json")
    pairs = {f.sources for f in schema.dense if len(f.sources) == 2}
    assert pairs
    for pair in pairs:
        assert any(set(pair) <= set(scalars) for scalars in SCALARS.values())
