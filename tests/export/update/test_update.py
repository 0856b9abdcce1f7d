"""Ads are added, replaced and removed: all of an update is served."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from named_ads import ids_of, rows_of
from typer.testing import CliRunner
from updates import USER, alike, answers, items, update

from torchrec_adrec.cli.app import app
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.errors import AdRecError, ConfigError
from torchrec_adrec.export.update import Updater
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.runs.versions import version_names
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.serve.batch import recommend_batch
from torchrec_adrec.serve.recommender import Recommender


def test_an_update_is_served_at_once_and_alike_after_a_new_start(
    updater: Updater,
) -> None:
    run = updater.run
    served = Recommender.load(run)
    before = answers(served)
    gone = [before["a10"]["ad_id"], before["a11"]["ad_id"]]
    assert min(gone) > 2**53
    done = update(updater, "a3,b6,7.5", "new,b1,", remove=(gone[0],))
    assert (done.added, done.replaced, done.removed) == (1, 1, 1)
    assert str(done).startswith("000001-") and "have changed since" in str(done)
    update(updater, "a3,b5,7.5", remove=(gone[1],))
    newest = served.refreshed(run)
    assert newest.changes == changes_name(run) == version_names(run / "changes")[-1]
    assert newest.refreshed(run) is newest
    after = answers(newest)
    assert set(after) == set(before) - {"a10", "a11"} | {"new"}
    # The replaced ad keeps its id, has its latest values, once; others are as before.
    assert after["a3"]["ad_id"] == before["a3"]["ad_id"]
    assert (after["a3"]["brand"], after["a3"]["price"]) == ("b5", "7.5")
    assert after["a3"]["score"] != before["a3"]["score"]
    assert after["new"]["price"] is None
    alike(after, {n: ad for n, ad in before.items() if n not in ("a3", "a10", "a11")})
    assert newest.retriever.index.count == len(after)
    # The one that was loaded before is what it was; a new start serves the same.
    assert answers(served) == before
    alike(answers(Recommender.load(run)), after)
    # A removed ad is there again when it is added again.
    update(updater, "a10,b3,1.5")
    assert answers(newest.refreshed(run))["a10"]["ad_id"] == gone[0]


def test_the_ranker_scores_a_new_ad_by_its_own_columns(updater: Updater) -> None:
    run = updater.run
    served = Recommender.load(run)
    best = answers(served)
    # Of another name that nobody knows, as both are: alike in all else.
    update(updater, "twin,b2,3", "other,b2,3")
    after = answers(served.refreshed(run))
    assert after["twin"]["click"] == after["other"]["click"]
    update(updater, "twin,b4,0")
    newest = answers(served.refreshed(run))
    assert newest["twin"]["click"] != after["twin"]["click"]
    assert newest["other"]["click"] == after["other"]["click"]
    assert len(newest) == len(best) + 2


def test_a_removed_ad_is_in_no_answer(updater: Updater) -> None:
    run = updater.run
    served = Recommender.load(run)
    prepared = served.eligible_ads("brand = 'b1'")
    best = served.recommend(USER, 5).ads["ad_id"].to_list()
    eligible = [ad["ad_id"] for ad in items(served, top=9, eligible=prepared).values()]
    gone = (best[0], eligible[0])
    update(updater, remove=gone)
    newest = served.refreshed(run)
    assert not set(gone) & {ad["ad_id"] for ad in answers(newest).values()}
    for eligible_now in ("brand = 'b1'", prepared):
        ads = items(newest, top=9, eligible=eligible_now).values()
        assert not set(gone) & {ad["ad_id"] for ad in ads}
        assert {ad["brand"] for ad in ads} == {"b1"}
    with pytest.raises(AdRecError, match="not in the catalog"):
        newest.eligible_ads(np.array(gone))
    users = run.parent / "users.parquet"
    pl.DataFrame([{"user": f"u{n}"} for n in range(40)]).write_parquet(users)
    file = UserFile.open(users, Encoder.load(run / "data"))
    recommend_batch(Recommender.load(run), file, run.parent / "out", SingleProcess())
    assert not set(gone) & set(pl.read_parquet(run.parent / "out")["ad_id"])


def test_the_commands(
    updater: Updater,
) -> None:
    run = updater.run

    def command(*args: object) -> Any:
        words = ["index", *map(str, args), "--out", str(run)]
        return CliRunner().invoke(app, words)

    stage_settings(run / "data").save(run / "config.yaml")
    rows, ids = rows_of(run.parent, "new,b1,"), ids_of(run.parent, 7)
    with pytest.raises(AdRecError, match="there is no ad 7"):
        raise command("update", "--add", rows, "--remove", ids).exception
    with pytest.raises(ConfigError, match="nothing to update"):
        raise command("update").exception
    done = command("update", "--add", rows)
    assert done.exit_code == 0 and done.stdout.startswith("000001-")
    assert "1 ads added, 0 replaced, 0 removed; 0.50%" in done.stdout
    assert command("compact").exit_code == 0
    manifest = IndexManifest.load(stage_folder(run, "index"))
    assert manifest.changes == changes_name(run)
