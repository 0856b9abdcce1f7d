"""The towers of the law itself must find the true top, and nothing else does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import prepare_world

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.ranking_metrics import many_relevant
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.evaluation.true_top import TrueTop, ads_of


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as alone:
        yield alone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("top") / "data"
    prepare_world(folder, rows=20_000, ads=500, users=300)
    return folder


def test_the_laws_own_vectors_find_it(data: Path, process: Process) -> None:
    """Fails where another time, device or user is asked about, or unborn ads stay."""
    known, catalog = KnownRows.of(data), load_catalog(data)
    top = TrueTop.of(known, catalog, data, 150, 20, 0)
    impressions = known.truth[top.rows]
    assert len(top.rows) == impressions["user"].n_unique() == 150
    world, ads = known.world, ads_of(catalog, data)
    tastes = world.tastes(
        impressions["user"].to_numpy(), impressions["time"].to_numpy()
    )
    fit = np.eye(3)[impressions["device"].to_numpy()]
    users = np.concatenate([world.config.affinity * tastes, fit], axis=1)
    quality = world.ads.quality[ads][:, None]
    places = world.fit.T[world.ads.format[ads]] + quality
    vectors = np.concatenate([world.ads.vector[ads], places], axis=1)
    scorer = InnerProduct.of(
        users.astype(np.float32), vectors.astype(np.float32), 0, torch.device("cpu")
    )
    clicked = top.best[:, 0]
    lists = search(scorer, clicked, 20, process, top.unborn).lists
    metrics = many_relevant(lists, top.best, (10, 20), len(catalog))
    assert metrics["recall@20"].mean() > 0.999 and metrics["mrr"].mean() == 1
    without = search(scorer, clicked, 20, process).lists
    assert (
        many_relevant(without, top.best, (20,), len(catalog))["recall@20"].mean()
        < 0.999
    )
    assert (
        world.ads.birth[ads[top.best]] <= impressions["time"].to_numpy()[:, None]
    ).all()


def test_more_than_are_born_is_refused(data: Path) -> None:
    known, catalog = KnownRows.of(data), load_catalog(data)
    with pytest.raises(DataError, match="ads are born, expected at least"):
        TrueTop.of(known, catalog, data, 3, len(catalog) + 1, 0)
