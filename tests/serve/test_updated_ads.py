"""What was prepared, packed or begun before an update does not outlive it."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import polars as pl
import pytest
from built_index import on_threads
from named_ads import copy_of, ids_of, rows_of

from torchrec_adrec.config.run import EvaluationConfig
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.errors import ConfigError, DataError, ManifestError
from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.run_lock import Job, hold, hold_for_stages
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve import batch
from torchrec_adrec.serve.batch import load_alike, recommend_batch
from torchrec_adrec.serve.bundle import check_bundle, pack
from torchrec_adrec.serve.recommender import Recommender

USER = {"user": "u1", "city": "c1"}
TOP = 9


@pytest.fixture
def run(named_run: Path, tmp_path: Path) -> Path:
    return copy_of(named_run, tmp_path / "run")


@pytest.fixture
def served(run: Path) -> Recommender:
    return Recommender.load(run)


def update(run: Path, *lines: str, remove: Any = ()) -> None:
    updater, folder = Updater(run), run.parent
    schema = updater.ads.encoder.schema
    rows = AdRows.read(rows_of(folder, *lines), schema) if lines else None
    ids = AdIds.read(ids_of(folder, *remove)) if len(remove) else None
    updater.apply(rows, ids)


def test_a_condition_is_asked_again_of_replaced_ads(
    run: Path, served: Recommender
) -> None:
    prepared = served.eligible_ads("brand = 'b1'")
    ads = served.recommend(USER, TOP, prepared).ads
    replaced, kept = ads["item"][0], ads["item"][1]
    by_id = served.eligible_ads(ads[AD_ID].to_numpy())
    update(run, f"{replaced},b6,1", f"{kept},b1,7.5", "new,b1,1")
    newest = served.refreshed(run)
    size = len(newest.eligible_ads("brand = 'b1'").ids)
    items = newest.recommend(USER, size, prepared).ads
    assert set(items["brand"]) == {"b1"}
    assert {kept, "new"} <= set(items["item"]) and replaced not in items["item"]
    explained = newest.explain(USER, int(ads[AD_ID][0]), TOP, prepared)
    assert explained.stage == "not eligible"
    # Ids that somebody has given are those ads, whatever their columns are now.
    again = newest.recommend(USER, TOP, by_id).ads
    assert set(again[AD_ID]) == set(ads[AD_ID]) and "b6" in again["brand"]
    assert newest.retriever.index.is_current(newest.eligible_ads(by_id))


def test_a_filter_of_which_removed_ads_are_left_out_is_no_shorter_answer(
    run: Path, served: Recommender
) -> None:
    best = served.recommend(USER, 3).ads[AD_ID].to_numpy()
    prepared = served.eligible_ads(best)
    update(run, remove=best[:1])
    newest = served.refreshed(run)
    assert set(newest.recommend(USER, 2, prepared).ads[AD_ID]) == set(best[1:])
    with pytest.raises(DataError, match="top is 3, expected 1 to 2"):
        newest.recommend(USER, 3, prepared)
    update(run, remove=best[1:])
    with pytest.raises(DataError, match="no ad of the catalog is eligible"):
        newest.refreshed(run).recommend(USER, 1, prepared)


def test_an_ad_that_is_replaced_again_is_ranked_by_its_newest_columns(
    run: Path, served: Recommender
) -> None:
    """As a server goes on from one update to the next; the number of ads stays."""
    update(run, "a3,b1,1")
    first = served.refreshed(run)
    (ad,) = first.eligible_ads("item = 'a3'").ids
    update(run, "a3,b5,6")
    for newest in (first.refreshed(run), served.refreshed(run)):
        (row,) = newest.recommend(USER, 1, np.array([ad])).ads.to_dicts()
        (fresh,) = (
            Recommender.load(run).recommend(USER, 1, np.array([ad])).ads.to_dicts()
        )
        assert (row["brand"], row["price"]) == ("b5", "6.0")
        assert row["click"] == pytest.approx(fresh["click"], rel=1e-6)
        assert row["score"] == pytest.approx(fresh["score"], rel=1e-6)
    (old,) = first.recommend(USER, 1, np.array([ad])).ads.to_dicts()
    assert old["click"] != row["click"] and old["score"] != row["score"]


def test_a_packed_update_is_not_lost_when_it_is_looked_for_again(
    run: Path, served: Recommender, tmp_path: Path
) -> None:
    best = served.recommend(USER, 1).ads[AD_ID].to_numpy()
    update(run, remove=best)
    pack(run, tmp_path / "b.tar")
    packed = Recommender.load(tmp_path / "b.tar")
    assert packed.changes and packed.refreshed(tmp_path / "b.tar") is packed
    # Names lead to versions: others that are kept, or none.
    update(run, "new,b1,1")
    assert packed.refreshed(run, packed.changes) is packed
    older = packed.refreshed(run).refreshed(run, packed.changes)
    assert older.changes == packed.changes
    assert older.recommend(USER).ads.equals(packed.recommend(USER).ads)
    assert best[0] in older.refreshed(run, "").recommend(USER).ads[AD_ID]


@pytest.mark.parametrize("holder", [hold, hold_for_stages])
def test_nobody_works_in_a_bundle(
    holder: Callable[..., Any], run: Path, tmp_path: Path
) -> None:
    pack(run, tmp_path / "bundle")
    with (
        pytest.raises(ConfigError, match="is a bundle, in which nothing may change"),
        holder(tmp_path / "bundle", Job.new()),
    ):
        pass
    with pytest.raises(ConfigError, match="is a bundle"):
        update(tmp_path / "bundle", "new,b1,1")
    check_bundle(tmp_path / "bundle")


def test_ads_that_the_test_rows_know_otherwise_are_not_judged(
    run: Path, served: Recommender
) -> None:
    """Removed ads counted as lost by the index, which holds them no more."""
    update(run, remove=served.recommend(USER, 1).ads[AD_ID].to_numpy())
    settings = EvaluationConfig(funnel_users=5)
    with pytest.raises(ConfigError, match="were updated since the export"):
        evaluate_funnel(run, served.refreshed(run), settings, 0)
    assert not (run / "funnel").exists()


def test_ranks_of_one_batch_know_the_same_ads(
    run: Path, served: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update lands between the first of two ranks and the second."""
    users, out = tmp_path / "users.parquet", tmp_path / "out/recs.parquet"
    pl.DataFrame([{"user": f"u{n}"} for n in range(20)]).write_parquet(users)
    file = UserFile.open(users, Encoder.load(run / "data"))
    answers = [served.recommend({"user": f"u{n}"}, TOP).ads[AD_ID] for n in range(20)]
    load, is_loaded = Recommender.load, Event()

    def load_and_tell(*args: Any, **arguments: Any) -> Recommender:
        recommender = load(*args, **arguments)
        is_loaded.set()
        return recommender

    def work(rank: Any) -> Recommender:
        if not rank.is_first:
            assert is_loaded.wait(60)
            update(run, "new,b1,1", remove=answers[-1][:1])
        recommender = load_alike(run, rank, out)
        recommend_batch(recommender, file, out, rank, TOP)
        return recommender

    monkeypatch.setattr(Recommender, "load", load_and_tell)
    first, second = on_threads(2, work)
    assert changes_name(run) and first.changes == second.changes == ""
    written = pl.read_parquet(out)
    for user, ads in enumerate(answers):
        assert written.filter(row=user)[AD_ID].to_list() == ads.to_list()
    assert [p.name for p in out.parent.iterdir()] == ["recs.parquet"]


def test_ranks_of_one_batch_with_other_builds_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "told_by_first", lambda *args: f"{'0' * 16}+")
    with pytest.raises(ManifestError, match=r"rank 0 as 0000.*start the ranks again"):
        load_alike(run, SingleProcess(), tmp_path / "recs.parquet")
