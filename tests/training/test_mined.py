"""Mined negatives: whose lists they are, and who may stand in them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mined_world
import numpy as np
import polars as pl
import pytest
from mined_world import (
    FIRST,
    ITEMS,
    LAST,
    SEEN,
    TOWERS,
    arrays,
    rows_of,
    settings,
    shown,
)

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.loader.mined import LISTS, MINED
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import (
    CheckpointError,
    ConfigError,
    ManifestError,
)
from torchrec_adrec.runs import stages
from torchrec_adrec.runtime.files import HASHES, write_hashes
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema, Side
from torchrec_adrec.tasks.task import build_task
from torchrec_adrec.training.click_search import ClickSearch
from torchrec_adrec.training.mine import RECORD, mine
from torchrec_adrec.training.trainer import Trainer

data, towers, mined = mined_world.data, mined_world.towers, mined_world.mined


def scores_of(data: Path, towers: Path, rows: pl.DataFrame) -> Float64s:
    """Score all ads for the users of rows, by the towers in one piece."""
    schema = Schema.load(data / "schema.json")
    task: Any = build_task("retrieval", schema, load_config(None, TOWERS)).eval()
    checkpoint.load(checkpoint.open_checkpoint(towers), task, schema)

    def vectors(rows: pl.DataFrame, side: Side) -> Float64s:
        columns = {name: rows[name].to_numpy() for name in schema.columns_of(side)}
        tower = task.model.encode_users if side == Side.USER else task.model.ad_tower
        return np.asarray(tower(tower_input(columns, schema, side)).detach().double())

    return vectors(rows, Side.USER) @ vectors(shown(data), Side.AD).T


def known_of(data: Path, clicks: pl.DataFrame) -> list[set[int]]:
    """The places of the ads that each user is known to have clicked, row by row."""
    ads, trained = shown(data), rows_of(data, "train").filter(pl.col("click") == 1)
    place = {ad: number for number, ad in enumerate(ads[AD_ID])}
    place_of_item = {item: number for number, item in enumerate(ads["item"])}
    clicked: dict[int, set[int]] = {}
    for user, ad in trained.select(USER_KEY, AD_ID).iter_rows():
        clicked.setdefault(user, set()).add(place[ad])
    histories = clicks.select(f"history:{i}" for i in range(SEEN)).rows()
    return [
        clicked[user] | {place_of_item[item] for item in history if item >= 2}
        for user, history in zip(clicks[USER_KEY], histories, strict=True)
    ]


def test_a_list_holds_the_ads_of_its_ranks_and_no_known_click(
    data: Path, towers: Path, mined: Path
) -> None:
    rows, clicked, lists = arrays(mined)
    trained = rows_of(data, "train")
    assert rows.tolist() == np.flatnonzero(trained["click"] == 1).tolist()
    clicks = trained[rows]
    assert shown(data)[AD_ID].to_numpy()[clicked].tolist() == clicks[AD_ID].to_list()
    scores = scores_of(data, towers, clicks)
    assert lists.shape == (len(rows), LAST - FIRST + 1)
    for row, known in enumerate(known_of(data, clicks)):
        ads = lists[row]
        assert not known & set(ads.tolist()) and len(set(ads.tolist())) == len(ads)
        others = np.delete(scores[row], [*known])
        best = np.sort(others)[::-1][FIRST - 1 : LAST]
        assert scores[row, ads] == pytest.approx(best, abs=1e-5)


def test_held_out_clicks_are_candidates_like_any_ad(data: Path, mined: Path) -> None:
    """To leave them out would tell training which ads they are."""
    rows, _, lists = arrays(mined)
    place = {ad: number for number, ad in enumerate(shown(data)[AD_ID])}
    held_out = pl.concat([rows_of(data, "valid"), rows_of(data, "test")])
    held_out = held_out.filter(pl.col("click") == 1)
    pairs = {
        (user, place[ad])
        for user, ad in held_out.select(USER_KEY, AD_ID).iter_rows()
        if ad in place
    }
    users = rows_of(data, "train")[USER_KEY].to_numpy()[rows]
    listed = {(user, ad) for user, ads in zip(users, lists, strict=True) for ad in ads}
    assert len(pairs & listed) > 10


def test_ads_of_a_history_have_no_rank_even_if_no_row_shows_the_click(
    data: Path,
    towers: Path,
    process: Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = pl.DataFrame(schema={USER_KEY: pl.Int64, AD_ID: pl.Int64})
    monkeypatch.setattr(ClickSearch, "_clicks_of_users", lambda search: nothing)
    mine(settings(towers), process, data, tmp_path)
    rows, _, lists = arrays(tmp_path)
    items = shown(data)["item"].to_numpy()[lists]
    histories = rows_of(data, "train")[rows].select(f"history:{i}" for i in range(SEEN))
    for listed, history in zip(items, histories.rows(), strict=True):
        assert not set(listed.tolist()) & {item for item in history if item >= 2}


def test_lists_are_whole_or_made_anew_and_stay_what_they_were(
    data: Path, towers: Path, mined: Path, process: Process, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="mined is missing"):
        Trainer("retrieval", settings(towers), process, data, tmp_path)
    partial = tmp_path / f"{MINED}.partial"
    partial.mkdir()
    (partial / LISTS).write_text("of a run that was killed")
    mine(settings(towers), process, data, tmp_path)
    assert not partial.exists()
    for one, other in zip(arrays(tmp_path), arrays(mined), strict=True):
        assert np.array_equal(one, other)
    mine(settings(towers), process, data, tmp_path)  # as a run that goes on
    with pytest.raises(ManifestError, match="have changed"):
        mine(settings(towers, "retrieval.mined.ranks=[1, 20]"), process, data, tmp_path)
    lists = tmp_path / MINED / LISTS
    lists.write_bytes(lists.read_bytes()[:-1] + b"?")
    with pytest.raises(ManifestError, match=r"lists.npy.*damaged or changed"):
        mine(settings(towers), process, data, tmp_path)


def test_towers_and_data_that_do_not_fit_are_refused(
    data: Path, towers: Path, process: Process, tmp_path: Path
) -> None:
    # The same vocabulary, and an ad that was shown once more: another split.
    other = tmp_path / "data"
    shutil.copytree(data, other)
    more = load_catalog(other).with_columns(pl.col("impressions") + 1)
    more.write_parquet(other / "catalog.parquet")
    names = json.loads((other / HASHES).read_text())
    write_hashes(other, [other / name for name in names])
    with pytest.raises(CheckpointError, match="another catalog than"):
        mine(settings(towers), process, other, tmp_path)
    many = settings(towers, f"retrieval.mined.ranks=[1, {ITEMS}]")
    with pytest.raises(ConfigError, match=f"showed {ITEMS - 1} ads; set a last rank"):
        mine(many, process, data, tmp_path)
    # Every user knows ten ads, so that no list is as long.
    far = settings(towers, f"retrieval.mined.ranks=[{ITEMS - 1}, {ITEMS - 1}]")
    with pytest.raises(ConfigError, match="no training click has so many"):
        mine(far, process, data, tmp_path)
    assert not (tmp_path / MINED).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("retrieval.mined.checkpoint=''", "no checkpoint is named"),
        ("retrieval.mined.ranks=[9, 8]", "hold no place"),
        ("retrieval.mined.ranks=[0, 8]", "greater than or equal to 1"),
        ("retrieval.alpha=1", "there is no contrast"),
        ("retrieval.contrast=bpr", "set contrast to softmax"),
    ],
)
def test_settings_that_cannot_hold_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(Path("towers"), words)


def test_another_checkpoint_at_the_same_place_is_another_stage(tmp_path: Path) -> None:
    prints = []
    for hashes in ("one", "two"):
        (tmp_path / HASHES).write_text(hashes)
        prints.append(stages._settings(stages.RETRIEVAL, settings(tmp_path)))
    prints.append(
        stages._settings(
            stages.RETRIEVAL, settings(tmp_path, "retrieval.mined.ranks=[1, 9]")
        )
    )
    assert len(set(prints)) == 3


SCRIPT = """
from pathlib import Path
from mined_world import settings
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.training.refit import fit_stage

with process_group("cpu") as process:
    words = f"retrieval.init_from={towers}", "retrieval.output_dim=4"
    config = settings(Path({towers!r}), *words)
    fit_stage("retrieval", config, process, Path({data!r}), Path({folder!r}))
"""


def test_two_ranks_mine_the_same_and_train_from_the_towers_that_searched(
    data: Path,
    towers: Path,
    mined: Path,
    tmp_path: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    tests = str(Path(__file__).parent)
    text = f"import sys; sys.path[:0] = [{tests!r}]\ntowers = {str(towers)!r}\n" + (
        SCRIPT.replace("{towers!r}", "towers")
        .replace("{data!r}", repr(str(data)))
        .replace("{folder!r}", repr(str(tmp_path)))
    )
    done = ranks_script(2, text)
    assert done.returncode == 0, done.stderr
    for one, other in zip(arrays(tmp_path), arrays(mined), strict=True):
        assert np.array_equal(one, other)
    assert json.loads((tmp_path / MINED / RECORD).read_text())["ranks"] == [FIRST, LAST]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train"]["steps"] > 0
