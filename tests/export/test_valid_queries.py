"""Settings of the towers are chosen by the recall of validation clicks."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.export.export import QUERIES, VALID_QUERIES
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.schema import AD_ID


def test_their_recall_is_that_of_a_plain_search(run: Path) -> None:
    ids, ads = load_vectors(run / "export")
    clicked, users = load_vectors(run / "export", VALID_QUERIES)
    rows = pl.read_parquet(run / "data/valid/*.parquet").filter(pl.col("click") == 1)
    assert clicked.tolist() == rows[AD_ID].to_list()
    scores = users @ ads.T
    score = scores[np.arange(len(clicked)), np.searchsorted(ids, clicked)]
    rank = (scores >= score[:, None]).sum(axis=1)
    figures = json.loads((run / "export/metrics.json").read_text())["valid"]["towers"]
    assert figures["clicks"] == len(clicked)
    cuts = [k for k in (10, 100) if f"recall@{k}" in figures]
    assert cuts
    for k in cuts:
        # Equal scores may round to another order in another product.
        expected = pytest.approx((rank <= k).mean(), abs=2 / len(clicked))
        assert figures[f"recall@{k}"] == expected


def test_the_index_is_judged_by_the_test_clicks_still(run: Path) -> None:
    clicked, _ = load_vectors(run / "export", QUERIES)
    rows = pl.read_parquet(run / "data/test/*.parquet").filter(pl.col("click") == 1)
    assert clicked.tolist() == rows[AD_ID].to_list()
    names = {path.name for path in (run / "export").glob("*queries*")}
    assert names == {QUERIES, VALID_QUERIES}
