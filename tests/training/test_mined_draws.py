"""Mined negatives: what a step draws from the lists, and what the loss makes of it."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import mined_world
import numpy as np
import pytest
import torch
from mined_world import BATCH, DRAWS, FIRST, LAST, arrays, settings, shown
from numpy.typing import NDArray

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.loader.batch_memory import heap
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns
from torchrec_adrec.data.loader.feed import Feed
from torchrec_adrec.data.loader.mined import CLICKED, MINED, ROWS
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import (
    DataError,
)
from torchrec_adrec.schema import AD_ID, Schema
from torchrec_adrec.tasks.retrieval import RetrievalLoss
from torchrec_adrec.training.batch_source import negatives_of

data, towers, mined = mined_world.data, mined_world.towers, mined_world.mined


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
