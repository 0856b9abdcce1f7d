"""Users of one half of the items each, towers trained on them, and their lists."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_data import prepare_table

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.mined import CLICKED, LISTS, MINED, ROWS
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.training.mine import mine
from torchrec_adrec.training.refit import fit_stage

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
