"""One contract for every kind of index, and a gate that lets nothing wrong through."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import ConfigError, GateError, ManifestError
from torchrec_adrec.index import build
from torchrec_adrec.index.build import build_shard, shard_name, train_empty
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.spec import IndexSpec
from torchrec_adrec.runtime.files import check_files, sha256

N, D, K = 3000, 8, 50
KINDS = ("exact", "ivf_flat")


def corpus() -> tuple[Any, Any, Any]:
    """Unnormalised vectors (so that L2 orders otherwise), 63-bit ids, queries."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N, D)).astype(np.float32)
    vectors *= rng.uniform(0.5, 2, (N, 1)).astype(np.float32)
    ids = rng.choice(2**62, N, replace=False) + 2**61
    return ids, vectors, rng.normal(size=(40, D)).astype(np.float32)


def made(kind: str, shards: int, folder: Path, nlist: int = 30) -> ShardedIndex:
    ids, vectors, _ = corpus()
    spec = IndexSpec.derive(IndexConfig(kind=kind, nlist=nlist), D, N)
    train_empty(spec, ids, vectors, 0, folder)
    for number in range(shards):
        build_shard(number, shards, ids, vectors, folder)
    loaded = [faiss.read_index(str(folder / shard_name(i))) for i in range(shards)]
    return ShardedIndex(loaded, spec.nlist, spec.nlist)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_searched_fully_it_is_brute_force(
    kind: str, shards: int, tmp_path: Path
) -> None:
    ids, vectors, queries = corpus()
    found, scores = made(kind, shards, tmp_path).search(queries, K)
    exact = queries @ vectors.T
    best = np.argsort(-exact, axis=1)[:, :K]
    assert (found == ids[best]).mean() > 0.999
    np.testing.assert_allclose(scores, np.take_along_axis(exact, best, 1), atol=1e-5)


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_answer_as_one_index_does(shards: int, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one, many = (
        made("ivf_flat", 1, tmp_path / "one"),
        made("ivf_flat", shards, tmp_path / "many"),
    )
    one.nprobe = many.nprobe = 4
    for a, b in zip(
        one.search(corpus()[2], K), many.search(corpus()[2], K), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    ids, vectors, _ = corpus()
    shuffled = np.random.default_rng(1).permutation(N)
    spec = IndexSpec.derive(IndexConfig(kind="ivf_flat", nlist=30), D, N)
    hashes = []
    for order in (np.arange(N), shuffled):
        train_empty(spec, ids[order], vectors[order], 0, tmp_path)
        build_shard(0, 2, ids[order], vectors[order], tmp_path)
        hashes.append(sha256(tmp_path / shard_name(0)))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_full_and_no_minus_one_leaves(kind: str, tmp_path: Path) -> None:
    index = made(kind, 3, tmp_path, nlist=300)
    index.nprobe = 1  # about ten ads in the list that is visited
    found, scores = index.search(corpus()[2], 500)
    assert found.shape == (40, 500) and (found >= 0).all() and np.isfinite(scores).all()
    assert all(len(set(row)) == 500 for row in found.tolist())
    assert index.search(corpus()[2], N + 5)[0].shape == (40, N)


def test_the_gate_tunes_to_the_target(tmp_path: Path) -> None:
    ids, vectors, queries = corpus()
    index = made("ivf_flat", 2, tmp_path)
    gate = tune_and_validate(index, ids, vectors, queries, K, 0.9)
    assert 0.9 <= gate.recall < 1 and 1 < index.nprobe < index.nlist
    assert gate.score_error < 1e-5
    assert tune_and_validate(index, ids, vectors, queries, K, 1.0).recall == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_another_metric_is_not_published(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The towers score by inner product; built with L2 the index orders otherwise."""
    monkeypatch.setattr(build.faiss, "IndexFlatIP", faiss.IndexFlatL2)
    monkeypatch.setattr(build.faiss, "METRIC_INNER_PRODUCT", faiss.METRIC_L2)
    ids, vectors, queries = corpus()
    with pytest.raises(GateError, match="another metric"):
        tune_and_validate(made(kind, 2, tmp_path), ids, vectors, queries, K, 0.9)


def test_an_index_of_other_vectors_is_not_published(tmp_path: Path) -> None:
    ids, vectors, queries = corpus()
    index = made("exact", 2, tmp_path)
    with pytest.raises(GateError, match="other vectors"):
        tune_and_validate(index, np.roll(ids, 1), vectors, queries, K, 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_lost_or_doubled_ads_is_not_published(
    kind: str, tmp_path: Path
) -> None:
    ids, vectors, queries = corpus()
    index = made(kind, 4, tmp_path)
    lost = index.shards.pop()
    with pytest.raises(GateError, match="hold 2250 distinct ads in 2250 entries"):
        tune_and_validate(index, ids, vectors, queries, K, 0.5)
    # The sum is right again and so is the recall of half of the ads.
    index.shards.append(index.shards[0])
    with pytest.raises(GateError, match="hold 2250 distinct ads in 3000 entries"):
        tune_and_validate(index, ids, vectors, queries, K, 0.5)
    index.shards[-1] = lost
    tune_and_validate(index, ids, vectors, queries, K, 0.5)


def test_an_index_that_cannot_reach_the_target_is_not_published(
    tmp_path: Path,
) -> None:
    ids, vectors, queries = corpus()
    index = made("ivf_flat", 2, tmp_path)
    index.nlist = 2  # as many lists as it may visit
    with pytest.raises(GateError, match=r"below index\.target_recall"):
        tune_and_validate(index, ids, vectors, queries, K, 0.9)


def test_a_cut_shard_is_found(tmp_path: Path) -> None:
    made("exact", 1, tmp_path)
    path = tmp_path / shard_name(0)
    hashes = {path.name: sha256(path)}
    check_files(tmp_path, hashes)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ManifestError, match="expected sha256"):
        check_files(tmp_path, hashes)


def test_what_is_derived() -> None:
    auto = IndexConfig()
    assert IndexSpec.derive(auto, D, 100_000).kind == "exact"
    derived = IndexSpec.derive(auto, D, 1_000_000)
    assert (derived.kind, derived.nlist) == ("ivf_flat", 4000)
    with pytest.raises(ConfigError, match="exceeds the 10 ads"):
        IndexSpec.derive(IndexConfig(kind="ivf_flat", nlist=11), D, 10)
