"""Candidates without the ads that a user has clicked: figures by plain numpy."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_data import prepare_table

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.catalog_judge import CatalogJudge
from torchrec_adrec.evaluation.exact_search import ExcludedAds
from torchrec_adrec.evaluation.full_catalog import clicks_of, judge, judge_towers
from torchrec_adrec.evaluation.known_ads import check_known, known_ads, new_clicks
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema

USERS, ITEMS, TAKEN = 30, 40, 12
TABLE: dict[str, Any] = {
    "labels": {"click": {"positives_only": True, "negatives": 0}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {"uid": "text", "history": {"of": "item", "length": TAKEN}},
    "ad": {"item": "text"},
    "ad_id": "item",
}


def prepare(
    folder: Path, table: dict[str, Any], by: str = "leave_one_out", repeats: int = 0
) -> Path:
    """Prepare users with TAKEN items each; so many take their first one again."""
    rng = np.random.default_rng(0)
    items_of = [rng.permutation(ITEMS)[:TAKEN] for _ in range(USERS)]
    for items in items_of[:repeats]:
        items[-1] = items[0]
    rows = pl.DataFrame(
        {
            "uid": [f"u{user}" for user in range(USERS) for _ in range(TAKEN)],
            "item": [f"i{item}" for items in items_of for item in items],
            "ts": range(USERS * TAKEN),
        }
    )
    prepare_table(*(folder, rows, table), split={"by": by}, min_count=1)
    return folder


def ndcg(scores: Float64s, clicked: Any) -> float:
    target = scores[np.arange(len(scores)), clicked]
    ranks = (scores >= target[:, None]).sum(axis=1)
    return float(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean())


@pytest.mark.parametrize("split", ["valid", "test"])
def test_figures_are_those_of_numpy(
    split: str, process: Process, tmp_path: Path
) -> None:
    """Of towers and popularity, with and without the history as candidates."""
    data = prepare(tmp_path / "data", TABLE)
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    clicks, _ = clicks_of(data, schema, split, USERS, 0)
    rng = np.random.default_rng(1)
    ads = rng.normal(size=(len(catalog), 4)).astype(np.float32)
    users = rng.normal(size=(len(clicks), 4)).astype(np.float32)
    clicked = np.searchsorted(catalog[AD_ID], clicks[AD_ID])
    histories = clicks.select(f"history:{i}" for i in range(TAKEN)).to_numpy()
    known = (histories[:, :, None] == catalog["item"].to_numpy()).any(axis=1)
    assert (
        known.sum() > 5 * len(clicks) and not known[range(len(clicks)), clicked].any()
    )
    scores = users.astype(np.float64) @ ads.T
    expected = {False: ndcg(scores, clicked)}
    expected[True] = ndcg(np.where(known, -np.inf, scores), clicked)
    assert expected[True] > expected[False]
    whole = slice(0, len(ads))
    for without, figure in expected.items():
        given = schema if without else None
        alone = judge_towers(ads, whole, users, clicks, data, process, given)
        assert alone["ndcg@10"] == pytest.approx(figure)
        if split == "test":
            judged = judge(ads, whole, users, data, schema, 0, process, without)
            assert judged["all"]["towers"]["ndcg@10"] == pytest.approx(figure)
            assert ("known" in judged["protocol"]["filtered"]) == without
            shown = np.bincount(
                np.searchsorted(catalog[AD_ID], _training(data)), minlength=len(ads)
            ).astype(np.float64)
            popular = np.tile(shown, (len(clicks), 1))
            popular = np.where(known & without, -np.inf, popular)
            assert judged["all"]["popularity"]["ndcg@10"] == pytest.approx(
                ndcg(popular, clicked)
            )


def _training(data: Path) -> Any:
    return pl.scan_parquet(data / "train" / "*.parquet").collect()[AD_ID]


def test_a_user_without_a_history_is_known_by_earlier_splits(tmp_path: Path) -> None:
    """Those that `known_ads` names are the ads of his earlier rows, and no others."""
    data = prepare(tmp_path / "data", TABLE | {"user": {"uid": "text"}})
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    rows = {n: pl.read_parquet(data / n / "*.parquet") for n in ("train", "valid")}
    for split, earlier in (("valid", ["train"]), ("test", ["train", "valid"])):
        clicks, _ = clicks_of(data, schema, split, USERS, 0)
        excluded = known_ads(clicks, catalog, schema, data, split)
        for query, user in enumerate(clicks[USER_KEY]):
            before = pl.concat(
                rows[n].filter(pl.col(USER_KEY) == user) for n in earlier
            )
            span = slice(*excluded.starts[query : query + 2])
            ids = catalog[AD_ID].gather(excluded.positions[span])
            assert sorted(ids) == sorted(before[AD_ID])


def test_a_history_that_reaches_further_back_than_the_log_is_known_too(
    tmp_path: Path,
) -> None:
    data = prepare(tmp_path / "data", TABLE)
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    clicks, _ = clicks_of(data, schema, "test", USERS, 0)
    item = int(catalog["item"][7])
    clicks = clicks.with_columns(pl.lit(item).alias("history:0"))
    clicks = clicks.with_columns(pl.lit(-5).alias(USER_KEY))
    excluded = known_ads(clicks, catalog, schema, data, "test")
    assert all(7 in excluded.positions[a:b] for a, b in pairwise(excluded.starts))


def test_a_click_on_a_known_ad_is_not_asked_for() -> None:
    """The other queries keep what is excluded for them."""
    excluded = ExcludedAds(np.array([0, 2, 2, 5, 6]), np.array([4, 7, 1, 3, 9, 2]))
    is_new, kept = new_clicks(excluded, np.array([7, 7, 2, 5]))
    assert is_new.tolist() == [False, True, True, True]
    assert kept.starts.tolist() == [0, 0, 3, 4]
    assert kept.positions.tolist() == [1, 3, 9, 2]


def test_repeated_clicks_are_counted_and_no_other_figure_moves(
    process: Process, tmp_path: Path
) -> None:
    """Seven users take their first item again at the end."""
    data = prepare(tmp_path / "data", TABLE, repeats=7)
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    clicks, _ = clicks_of(data, schema, "test", USERS, 0)
    rng = np.random.default_rng(1)
    ads = rng.normal(size=(len(catalog), 4)).astype(np.float32)
    users = rng.normal(size=(USERS, 4)).astype(np.float32)
    judged = judge(ads, slice(0, len(ads)), users, data, schema, 0, process, True)
    assert judged["protocol"]["repeated"] == 7
    assert judged["protocol"]["queries"] == USERS - 7
    clicked = np.searchsorted(catalog[AD_ID], clicks[AD_ID])
    histories = clicks.select(f"history:{i}" for i in range(TAKEN)).to_numpy()
    known = (histories[:, :, None] == catalog["item"].to_numpy()).any(axis=1)
    is_new = ~known[np.arange(USERS), clicked]
    scores = np.where(known, -np.inf, users.astype(np.float64) @ ads.T)
    expected = ndcg(scores[is_new], clicked[is_new])
    assert judged["all"]["towers"]["ndcg@10"] == pytest.approx(expected)


def test_a_judge_of_repeated_clicks_alone_is_refused(
    process: Process, tmp_path: Path
) -> None:
    data = prepare(tmp_path / "data", TABLE, repeats=USERS)
    schema, config = Schema.load(data / "schema.json"), load_config(None, [])
    with pytest.raises(ConfigError, match="no click on an ad that its user is not"):
        CatalogJudge(data, schema, config, process, "test")


def test_without_users_and_histories_nothing_is_known(tmp_path: Path) -> None:
    table = {name: value for name, value in TABLE.items() if name != "user_id"}
    labels = {"click": {"from": "ts", "at_least": 5}}
    table = table | {"user": {"uid": "text"}, "labels": labels}
    data = prepare(tmp_path / "data", table, by="time")
    schema = Schema.load(data / "schema.json")
    with pytest.raises(ConfigError, match=r"evaluation.exclude_known is true"):
        check_known(schema, data)
