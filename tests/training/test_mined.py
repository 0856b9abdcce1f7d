"""Mined negatives: whose lists they are, who may stand in them, and what is drawn."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from raw_data import prepare_table

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.batch_memory import heap
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, tower_input
from torchrec_adrec.data.loader.feed import Feed
from torchrec_adrec.data.loader.mined import CLICKED, LISTS, MINED, ROWS
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ManifestError,
)
from torchrec_adrec.runs import stages
from torchrec_adrec.runtime.files import HASHES, write_hashes
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema, Side
from torchrec_adrec.tasks.retrieval import RetrievalLoss
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.tasks.task import build_task
from torchrec_adrec.training.batch_source import negatives_of
from torchrec_adrec.training.click_search import ClickSearch
from torchrec_adrec.training.mine import RECORD, mine
from torchrec_adrec.training.refit import fit_stage
from torchrec_adrec.training.trainer import Trainer

USERS, ITEMS, TAKEN, SEEN, BATCH = 40, 60, 10, 4, 64
FIRST, LAST, DRAWS = 3, 20, 2
TABLE: dict[str, Any] = {
    "labels": {"click": {"positives_only": True, "negatives": 1}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {"uid": "text", "history": {"of": "item", "length": SEEN}},
    "ad": {"item": "text"},
    "ad_id": "item",
}
TOWERS = (
    "retrieval={hidden: [], embedding_dim: 4, output_dim: 4, dropout: 0, alpha: 0.5}",
    "retrieval.optimizer.tables_lr=0.2",
    f"train={{batch_size: {BATCH}, epochs: 1, health_every: 0, dead_model: warn}}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of one half of the items each; two clicks of everybody are held out."""
    rng = np.random.default_rng(0)
    pairs = [
        (f"u{user}", f"i{2 * item + user % 2}")
        for user in range(USERS)
        for item in rng.permutation(ITEMS // 2)[:TAKEN]
    ]
    users, items = zip(*pairs, strict=True)
    rows = pl.DataFrame({"uid": users, "item": items, "ts": range(len(pairs))})
    folder = tmp_path_factory.mktemp("mined") / "data"
    prepare_table(*(folder, rows, TABLE), split={"by": "leave_one_out"}, min_count=1)
    return folder


@pytest.fixture(scope="module")
def towers(
    data: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The checkpoint of an earlier run."""
    folder = tmp_path_factory.mktemp("first")
    fit_stage("retrieval", load_config(None, TOWERS), process, data, folder)
    return final_checkpoint(folder).path


def settings(towers: Path, *words: str) -> Config:
    """Settings of a run with towers of another width than those that search."""
    mined = f"{{per_click: {DRAWS}, ranks: [{FIRST}, {LAST}], checkpoint: {towers}}}"
    other = (f"retrieval.mined={mined}", "retrieval.output_dim=6")
    return load_config(None, [*TOWERS, *other, *words])


@pytest.fixture(scope="module")
def mined(
    data: Path, towers: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stage's folder with the lists."""
    folder = tmp_path_factory.mktemp("lists")
    mine(settings(towers), process, data, folder)
    return folder


def rows_of(data: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(sorted((data / split).glob("part-*.parquet")))


def arrays(folder: Path) -> list[Int64s]:
    """The numbers of the rows, the places of their ads, and their lists."""
    return [np.load(folder / MINED / name) for name in (ROWS, CLICKED, LISTS)]


def shown(data: Path) -> pl.DataFrame:
    return load_catalog(data).filter(pl.col("impressions") > 0)


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


Steps = dict[int, tuple[NDArray[Any], ...]]


def steps_of(
    data: Path,
    folder: Path,
    config: Config,
    rank: int = 0,
    ranks: int = 1,
    done: int = 0,
) -> Steps:
    """Each step's row numbers, clicks, mined ads and their log q, of one rank."""
    schema = Schema.load(data / "schema.json")
    split, columns = Split.open(data / "train"), batch_columns(schema)
    reader = Reader(split, columns, BATCH, rank, ranks, seed=0)
    process = Process(rank, ranks, ranks, torch.device("cpu"))
    negatives = negatives_of("retrieval", config, data, folder, process)
    feed = Feed(reader, schema, 2, "raise", negatives, numbered=True)
    feed = pickle.loads(pickle.dumps(feed))  # as it reaches the process that reads
    steps: Steps = {}
    for origin, batch in feed.read(done, heap, RepairCounts()):
        shape, last = (origin.count, DRAWS), slice(-origin.count * DRAWS, None)
        assert origin.numbers is not None
        steps[origin.step] = (
            origin.numbers,
            batch.labels[:, 0].numpy() == 1,
            batch.ad_ids[last].reshape(shape).numpy(),
            batch.log_q[last].reshape(shape).numpy(),
        )
    return steps


def test_a_step_draws_from_the_lists_of_its_own_clicks(
    data: Path, towers: Path, mined: Path
) -> None:
    rows, _, lists = arrays(mined)
    of_row = dict(zip(rows.tolist(), lists, strict=True))
    ids, places = shown(data)[AD_ID].to_numpy(), set()
    draws: dict[int, list[list[int]]] = {}
    for numbers, is_click, ads, log_q in steps_of(
        data, mined, settings(towers)
    ).values():
        assert is_click.any() and not is_click.all()
        assert (log_q[is_click] == np.float32(-np.log(LAST - FIRST + 1))).all()
        assert np.isposinf(log_q[~is_click]).all()
        for number, drawn in zip(numbers[is_click], ads[is_click], strict=True):
            allowed = ids[of_row[int(number)]].tolist()
            places |= {allowed.index(ad) for ad in drawn}
            draws.setdefault(int(number), []).append(drawn.tolist())
    assert places == set(range(LAST - FIRST + 1))
    # The second epoch draws other ads for the same row.
    repeated = [first == second for first, *rest in draws.values() for second in rest]
    assert len(repeated) > 100 and np.mean(repeated) < 0.1


def test_any_ranks_and_a_resumed_run_draw_the_same(
    data: Path, towers: Path, mined: Path
) -> None:
    config = settings(towers, "retrieval.uniform_negatives=4")
    process = Process(0, 1, 1, torch.device("cpu"))
    negatives = negatives_of("retrieval", config, data, mined, process).mined
    # The lists stay in their file when the reader is sent to another process.
    assert len(pickle.dumps(negatives)) < arrays(mined)[-1].nbytes
    alone = steps_of(data, mined, config)
    pair = [steps_of(data, mined, config, rank, 2) for rank in range(2)]
    resumed = steps_of(data, mined, config, done=3)
    assert [*resumed] == [*alone][3:]
    for step, parts in alone.items():
        joined = [np.concatenate(x) for x in zip(*(p[step] for p in pair), strict=True)]
        for one, other in zip(parts, joined, strict=True):
            assert np.array_equal(one, other)
        for one, other in zip(parts, resumed.get(step, parts), strict=True):
            assert np.array_equal(one, other)


def first_batch(data: Path, folder: Path, config: Config) -> Batch:
    schema = Schema.load(data / "schema.json")
    reader = Reader(Split.open(data / "train"), batch_columns(schema), BATCH, seed=0)
    process = Process(0, 1, 1, torch.device("cpu"))
    negatives = negatives_of("retrieval", config, data, folder, process)
    feed = Feed(reader, schema, 1, "raise", negatives)
    _, batch = next(iter(feed.read(0, heap, RepairCounts())))
    assert batch.buffer.numel() <= feed.most_bytes
    return batch


def test_the_shared_ads_keep_the_log_q_of_their_own_draws(
    data: Path, towers: Path, mined: Path
) -> None:
    """Mined ads are no draws that rows share: neither changes the other's share."""
    uniform, shared = "retrieval.uniform_negatives=4", BATCH + 4
    with_mined = first_batch(data, mined, settings(towers, uniform)).log_q
    none = settings(towers, uniform, "retrieval.mined.per_click=0")
    assert torch.equal(with_mined[:shared], first_batch(data, mined, none).log_q)
    alone = first_batch(data, mined, settings(towers)).log_q
    assert torch.equal(with_mined[shared:], alone[BATCH:])


@pytest.mark.usefixtures("process")
def test_a_mined_ad_is_pushed_away_from_its_own_user_alone(
    data: Path, towers: Path, mined: Path
) -> None:
    """Its gradient is a multiple of that user's vector, and 0 without a click."""
    config = settings(towers, "retrieval.uniform_negatives=4")
    batch = first_batch(data, mined, config)
    torch.manual_seed(0)
    user, ad = 0.1 * torch.randn(BATCH, 3), 0.1 * torch.randn(len(batch.ad_ids), 3)
    ad.requires_grad_()
    loss = RetrievalLoss(config.retrieval, Schema.load(data / "schema.json"))
    (gradient,) = torch.autograd.grad(loss(user, ad, torch.zeros(BATCH), batch), ad)
    of_mined = gradient[BATCH + 4 :].unflatten(0, (BATCH, DRAWS))
    along = (of_mined * user[:, None]).sum(dim=2)
    is_click = batch.labels[:, 0] == 1
    assert (along[is_click] > 0).all() and (of_mined[~is_click] == 0).all()
    lengths = of_mined.norm(dim=2) * user.norm(dim=1)[:, None]
    torch.testing.assert_close(along, lengths)


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


def test_lists_of_other_rows_are_noticed_by_the_step(
    data: Path, towers: Path, mined: Path, tmp_path: Path
) -> None:
    """Off by one: rows that are numbered from 1, or one of them, and moved lists."""
    rows, clicked, _ = arrays(mined)
    one = rows + (np.arange(len(rows)) == len(rows) // 2)
    faults = (ROWS, rows + 1), (ROWS, one), (CLICKED, np.roll(clicked, 1))
    for number, (name, values) in enumerate(faults):
        folder = tmp_path / str(number)
        shutil.copytree(mined / MINED, folder / MINED)
        np.save(folder / MINED / name, values)
        with pytest.raises(DataError, match=r"part-.*list .* of another row or ad"):
            steps_of(data, folder, settings(towers))


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
from test_mined import settings
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
