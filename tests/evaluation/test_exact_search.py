"""The sharded search against plain loops, on one process and on real gloo ranks."""

from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import prepare_world

from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation import exact_search
from torchrec_adrec.evaluation.exact_search import ExcludedAds, search
from torchrec_adrec.evaluation.scorers import InnerProduct, Popularity, by_popularity

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as alone:
        yield alone


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers: many ties, also of negative scores, and none by chance."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, size=(rows, 3)).astype(np.float32)


def by_hand(
    scores: np.ndarray, clicked: np.ndarray, k: int, out: list[set[int]] | None = None
) -> tuple[list[int], list[list[float]]]:
    """Ranks, and the scores of the best k, in plain Python."""
    ranks, tops = [], []
    for q, ad in enumerate(clicked):
        left = out[q] - {ad} if out else set()
        kept = [a for a in range(scores.shape[1]) if a not in left]
        ranks.append(sum(scores[q, a] >= scores[q, ad] for a in kept))
        tops.append(sorted((float(scores[q, a]) for a in kept), reverse=True)[:k])
    return ranks, tops


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 300 queries and 500 ads are several chunks and blocks."""
    monkeypatch.setattr(exact_search, "CHUNK_QUERIES", 64)
    monkeypatch.setattr(exact_search, "BLOCK_ADS", 150)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 20, 400])
def test_ranks_and_lists_are_those_of_a_loop(process: Process, k: int) -> None:
    users, ads = vectors(300), vectors(500, 1)
    clicked = np.random.default_rng(2).integers(500, size=300)
    result = search(InnerProduct.of(users, ads, 0, CPU), clicked, k, process)
    scores = users @ ads.T
    ranks, tops = by_hand(scores, clicked, k)
    assert result.ranks.tolist() == ranks
    assert np.take_along_axis(scores, result.lists, 1).tolist() == tops
    assert all(len(set(row)) == k for row in result.lists.tolist())


@pytest.mark.usefixtures("small_blocks")
def test_ads_left_out_are_no_candidates_but_the_clicked_one_is(
    process: Process,
) -> None:
    users, ads = vectors(300), vectors(500, 1)
    rng = np.random.default_rng(2)
    clicked = rng.integers(500, size=300)
    out = [
        set(rng.choice(500, size=q % 490).tolist()) | {int(c)}
        for q, c in enumerate(clicked)
    ]
    starts = np.cumsum([0, *map(len, out)])
    positions = np.array([position for ads_out in out for position in ads_out])
    result = search(
        InnerProduct.of(users, ads, 0, CPU),
        clicked,
        100,
        process,
        ExcludedAds(starts, positions),
    )
    ranks, tops = by_hand(users @ ads.T, clicked, 100, out)
    assert result.ranks.tolist() == ranks
    for q, row in enumerate(result.lists):
        listed = row[row >= 0].tolist()
        assert not set(listed) & (out[q] - {clicked[q]})
        assert (users[q] @ ads[listed].T).tolist() == tops[q]
        assert (row[len(listed) :] == -1).all()


def test_a_nan_counts_against_the_clicked_ad(process: Process) -> None:
    users = np.ones((2, 1), dtype=np.float32)
    ads = np.array([[3.0], [np.nan], [1.0], [-np.inf]], dtype=np.float32)
    result = search(InnerProduct.of(users, ads, 0, CPU), np.array([0, 1]), 2, process)
    assert result.ranks.tolist() == [2, 4]
    assert result.lists.tolist() == [[1, 0], [1, 0]]


def test_scores_a_hair_apart_and_zeros_of_either_sign_are_equal(
    process: Process,
) -> None:
    """Fails where keys are not rounded, or cut off, or compared as bits alone."""
    step = 2.0**-23
    users = np.array([[1 + step, 1]] * 2, dtype=np.float32)
    ads = np.array([[1 - step, 0], [0, 1]], dtype=np.float32)
    assert float(users[0, 0]) * float(ads[0, 0]) == 1 - step**2  # just below 1
    result = search(InnerProduct.of(users, ads, 0, CPU), np.array([0, 1]), 2, process)
    assert result.ranks.tolist() == [2, 2]
    zero = np.array([[0.0], [-0.0], [1.0]], dtype=np.float32)
    one = np.ones((2, 1), dtype=np.float32)
    result = search(InnerProduct.of(one, zero, 0, CPU), np.array([0, 1]), 3, process)
    assert result.ranks.tolist() == [3, 3]


def test_popularity_tells_counts_of_billions_apart(process: Process) -> None:
    impressions = np.array([2**40, 2**40 + 1, 5, 5, 0])
    ads = Popularity.of(impressions, slice(0, 5), CPU)
    result = search(ads, np.array([0, 1, 2, 4]), 2, process)
    assert result.ranks.tolist() == [2, 1, 4, 5]
    assert result.lists.tolist() == [[1, 0]] * 4


@pytest.mark.usefixtures("small_blocks")
def test_popularity_without_searching_is_the_same(process: Process) -> None:
    impressions = np.random.default_rng(0).integers(0, 60, size=500)
    clicked = np.arange(0, 500, 7)
    ads = Popularity.of(impressions, slice(0, 500), CPU)
    for k in (1, 90, 510):
        searched = search(ads, clicked, k, process)
        result = by_popularity(impressions, clicked, k)
        assert (result.ranks == searched.ranks).all()
        assert (result.lists == searched.lists).all()


def test_a_clicked_ad_that_no_rank_holds_is_an_error(process: Process) -> None:
    scorer = InnerProduct.of(vectors(2), vectors(5), 0, CPU)
    with pytest.raises(DataError, match="1 of 2 clicked ads are not in just one"):
        search(scorer, np.array([4, 5]), 1, process)


SCRIPT = """
import json
from pathlib import Path
import numpy as np
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.evaluation import exact_search
from torchrec_adrec.evaluation.full_catalog import held_out_clicks, judge
from torchrec_adrec.schema import Schema
exact_search.BLOCK_ADS = 50
data = Path(DATA)
schema = Schema.load(data / "schema.json")
clicks, _ = held_out_clicks(data, schema, 300, 0)
rng = np.random.default_rng(0)
ads = rng.normal(size=(len(load_catalog(data)), 8)).astype(np.float32)
ads[1::3] = ads[0]  # ties, over all ranks
queries = rng.normal(size=(len(clicks), 8)).astype(np.float32)
with process_group("cpu") as process:
    ends = [0, *[41] * (process.world_size - 1), len(ads)]  # of 3 ranks one has none
    local = slice(ends[process.rank], ends[process.rank + 1])
    figures = judge(ads[local], local, queries, data, schema, 0, process)
    if figures:
        print("FIGURES" + json.dumps(figures))
"""


def test_any_number_of_ranks_gives_the_same_figures(
    ranks_script: Callable[[int, str], CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Towers, popularity and context, every digit, on 1, 2 and 3 gloo ranks."""
    data = tmp_path_factory.mktemp("world")
    prepare_world(data, rows=6000, ads=300, users=200)
    script, lines = SCRIPT.replace("DATA", repr(str(data))), []
    for ranks in (1, 2, 3):
        done = ranks_script(ranks, script)
        assert done.returncode == 0, done.stderr
        lines += [x for x in done.stdout.splitlines() if "FIGURES" in x]
    one, two, three = lines
    assert one == two == three
