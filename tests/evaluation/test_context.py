"""The user's context alone, against its formula written as a loop."""

from collections.abc import Iterator
from math import log
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import prepare_world

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.context import ContextBaseline, ImpressionCounts, choose
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.full_catalog import clicks_of
from torchrec_adrec.schema import AD_ID, Schema, Side


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as alone:
        yield alone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "data"
    prepare_world(folder, rows=4000, ads=60, users=90)
    return folder


def test_scores_are_those_of_the_formula(data: Path) -> None:
    """Fails with another smoothing, without an ad's count, for a wrong slice."""
    schema = Schema.load(data / "schema.json")
    ids = load_catalog(data)[AD_ID].to_numpy()
    train = pl.read_parquet(data / "train/*.parquet")
    test, _ = clicks_of(data, schema, "test", 5, 0)
    columns = [f.name for f in schema.sparse_of(Side.USER)]
    a, weight, n = 7.0, 0.3, len(train)
    local = slice(10, len(ids))
    shown = ImpressionCounts.count(data, schema, ids, local)
    context = ContextBaseline.of(shown, shown.one_hot(test), a, weight)
    block = context.block(slice(0, 5), slice(0, len(ids) - 10)).numpy()
    for q in (0, 4):
        for place in range(10, len(ids)):
            rows = train.filter(pl.col(AD_ID) == ids[place])
            score = log((len(rows) + 1) / n)
            for c in columns:
                of_value = (train[c] == test[c][q]).sum() / n
                if of_value:
                    both = (rows[c] == test[c][q]).sum()
                    evidence = log((both + a * of_value) / (len(rows) + a)) - log(
                        of_value
                    )
                else:
                    evidence = -log(len(rows) / a + 1)
                score += weight * evidence
            assert block[q, place - 10] == pytest.approx(score)
    queries, ads = np.array([0, 3, 3]), np.array([0, 2, 30])
    pairs = context.pairs(queries, ads).numpy()
    assert pairs == pytest.approx(block[queries, ads], rel=1e-12)


def test_it_is_chosen_on_valid_and_beats_popularity(
    data: Path, process: Process
) -> None:
    """Ads are aimed at segments here, so the context must tell of them."""
    schema = Schema.load(data / "schema.json")
    catalog = load_catalog(data)
    ids = catalog[AD_ID].to_numpy()
    shown = ImpressionCounts.count(data, schema, ids, slice(0, len(ids)))
    valid, _ = clicks_of(data, schema, "valid", 500, 0)
    clicked = np.searchsorted(ids, valid[AD_ID].to_numpy())
    tuned = choose(shown, valid, clicked, process)
    assert tuned.clicks == len(valid) > 50 and tuned.ndcg is not None
    context = ContextBaseline.of(
        shown, shown.one_hot(valid), tuned.smoothing, tuned.weight
    )
    ranks = search(context, clicked, 1, process).ranks
    assert (1 / np.log2(1 + ranks)).mean() == pytest.approx(tuned.ndcg)
    impressions = catalog["impressions"].to_numpy()
    popular = (impressions >= impressions[clicked][:, None]).sum(axis=1)
    assert (ranks <= 10).mean() > 1.3 * (popular <= 10).mean()


def test_without_valid_clicks_it_is_set_and_says_so(
    data: Path, process: Process
) -> None:
    schema = Schema.load(data / "schema.json")
    ids = load_catalog(data)[AD_ID].to_numpy()
    shown = ImpressionCounts.count(data, schema, ids, slice(0, len(ids)))
    none, total = clicks_of(data, schema, "nothing", 500, 0)
    tuned = choose(shown, none, np.empty(0, dtype=np.int64), process)
    assert total == 0 and tuned.ndcg is None and tuned.clicks == 0
