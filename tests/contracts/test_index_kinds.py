"""What gate and serving rely on, asked of every kind of index."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import pytest
from built_index import D, K, N, built, clustered_corpus, corpus

from torchrec_adrec.config.index import IndexConfig
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import KINDS
from torchrec_adrec.index.kinds.kind import fastest, most_thorough
from torchrec_adrec.index.manifest import IDS, EmbeddingManifest, IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import sha256


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_settings_name_the_kinds_of_the_registry() -> None:
    names = get_args(IndexConfig.model_fields["kind"].annotation)
    assert sorted(names) == sorted(["auto", *KINDS])


def published(index: ShardedIndex, target: float, folder: Path) -> IndexManifest:
    """Tune an index over the clustered corpus and write its manifest."""
    data = clustered_corpus()
    gate = tune_and_validate(index, data.exported(), data.queries, K, target)
    names = [*sorted(path.name for path in folder.glob("*.faiss")), IDS]
    manifest = IndexManifest(
        embeddings=EmbeddingManifest.load(folder),
        kind=index.kind.name,
        build=dict(vars(index.kind)),
        search=index.setting,
        count=N,
        layout=index.layout,
        files={name: sha256(folder / name) for name in names},
        gate=gate,
    )
    manifest.save(folder)
    return manifest


def test_saved_and_loaded_it_finds_the_same_best_ads_and_their_scores(
    kind: str, tmp_path: Path
) -> None:
    data = clustered_corpus()
    index = built(kind, 3, tmp_path, data)
    published(index, 0.95, tmp_path)
    loaded = ShardedIndex.load(tmp_path, IndexManifest.load(tmp_path))
    assert (loaded.kind, loaded.setting) == (index.kind, index.setting)
    assert loaded.filtered == index.filtered
    ids, scores = loaded.search(data.queries, K)
    np.testing.assert_array_equal(ids, index.search(data.queries, K)[0])
    expected, _ = data.exact_top()
    hits = [len(set(a) & set(b)) for a, b in zip(ids, expected, strict=True)]
    assert sum(hits) >= 0.95 * expected.size
    order = np.argsort(data.ids)
    rows = order[np.searchsorted(data.ids, ids, sorter=order)]
    products = np.einsum("bd,bkd->bk", data.queries, data.vectors[rows])
    # Scores come from the stored vectors, which the code has rounded.
    lengths = np.linalg.norm(data.vectors[rows], axis=2)
    error = lengths * np.linalg.norm(data.queries, axis=1)[:, None]
    error = 1e-5 + error * index.kind.code_error
    assert (np.abs(scores - products) <= error).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_every_id_is_kept_once(kind: str, tmp_path: Path) -> None:
    data = corpus()
    for shards in (1, 4):
        index = built(kind, shards, tmp_path / str(shards), data)
        np.testing.assert_array_equal(np.sort(index.ids()), np.sort(data.ids))
        assert index.count == N


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_most_thorough_search_is_brute_force_on_any_number_of_shards(
    kind: str, shards: int, tmp_path: Path
) -> None:
    data = corpus()
    index = built(kind, shards, tmp_path, data)
    ids, scores = index.search(data.queries, K)
    expected_ids, expected_scores = data.exact_top()
    hits = np.mean([np.isin(a, b) for a, b in zip(ids, expected_ids, strict=True)])
    # Four of eight directions, or finds on a graph, are not all that there is.
    assert hits > (0.995 if index.kind.exhaustive else 0.8)
    if index.kind.code_error == 0 and index.kind.exhaustive:
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_all_that_is_stored_can_be_compared(kind: str, tmp_path: Path) -> None:
    """What fills up short answers, and serves where few ads are eligible."""
    data = corpus()
    index = built(kind, 3, tmp_path, data)
    lengths = np.linalg.norm(data.vectors, axis=1)
    error = np.linalg.norm(index.stored(data.ids) - data.vectors, axis=1)
    assert (error <= index.kind.code_error * lengths + 1e-6).all()
    ids, scores = index.compare_all(data.queries, K)
    products = np.einsum("bd,bkd->bk", data.queries, _vectors(index, ids))
    np.testing.assert_allclose(scores, products, atol=1e-5)
    exported = data.exported()
    top = exported.exact_top(data.queries, K)
    least = 0.995 if index.kind.exhaustive else 0.97
    assert exported.returned(top, ids).mean() > least


def _vectors(index: ShardedIndex, ids: Any) -> Any:
    return index.stored(ids.ravel()).reshape(*ids.shape, D)


def test_only_eligible_ads_are_returned(kind: str, tmp_path: Path) -> None:
    """Up to K of them, and by brute force at least as many good ones as asked for."""
    data = clustered_corpus()
    index = built(kind, 3, tmp_path, data)
    published(index, 0.9, tmp_path)
    exported = data.exported()
    for share in (1, 0.5, 0.1, 0.01, 0.001, 0):
        mask = np.random.default_rng(2).random(N) < share
        eligible = index.eligible(exported.ids[mask])
        ids, scores = index.search(data.queries, K, eligible)
        size = min(K, mask.sum())
        assert ids.shape == scores.shape == (len(data.queries), size)
        assert np.isin(ids, exported.ids[mask]).all() and np.isfinite(scores).all()
        assert all(len(set(row)) == size for row in ids.tolist())
        if size:
            top = exported.exact_top(data.queries, size, mask)
            assert exported.returned(top, ids).mean() > 0.88


def test_every_row_is_full_and_no_minus_one_leaves(kind: str, tmp_path: Path) -> None:
    data = corpus()
    # With 300 lists, the one that is read first holds about ten ads.
    index = built(kind, 3, tmp_path, data, nlist=300)
    index.setting = fastest(index.kind)
    ids, scores = index.search(data.queries, 500)
    assert ids.shape == (40, 500) and (ids >= 0).all() and np.isfinite(scores).all()
    assert all(len(set(row)) == 500 for row in ids.tolist())
    assert index.search(data.queries, N + 5)[0].shape == (40, N)


@pytest.mark.parametrize(("shards", "ranks"), [(2, 1), (4, 4), (9, 2)])
def test_any_number_of_shards_and_ranks_makes_one_index(
    kind: str, shards: int, ranks: int, tmp_path: Path
) -> None:
    """To the bit, also where a search leaves something out."""
    data = corpus()
    one = built(kind, 1, tmp_path / "one", data)
    many = built(kind, shards, tmp_path / "many", data, world_size=ranks)
    np.testing.assert_array_equal(many.ids(), np.sort(data.ids))
    if len(many.shards) > 1:
        return  # graphs of their own, which cannot be joined
    for setting in (fastest(one.kind), most_thorough(one.kind)):
        expected = one.nearest(data.queries, K, setting)
        actual = many.nearest(data.queries, K, setting)
        np.testing.assert_array_equal(expected[1], actual[1])
        if one.kind.exhaustive:  # short codes tie, and ties are in any order
            np.testing.assert_array_equal(expected[0], actual[0])


def test_a_second_search_at_the_same_time_is_as_thorough_as_it_says(
    kind: str, tmp_path: Path
) -> None:
    """Parameters go with the call: the shards stay as they are."""
    data = clustered_corpus()
    index = built(kind, 2, tmp_path, data)
    before = index.nearest(data.queries, K, most_thorough(index.kind))[0]
    index.nearest(data.queries, K, fastest(index.kind))
    after = index.nearest(data.queries, K, most_thorough(index.kind))[0]
    np.testing.assert_array_equal(before, after)


def test_an_index_of_another_metric_is_not_published(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The towers score by inner product; built with L2 the index orders otherwise."""
    monkeypatch.setattr(faiss, "IndexFlatIP", faiss.IndexFlatL2)
    monkeypatch.setattr(faiss, "METRIC_INNER_PRODUCT", faiss.METRIC_L2)
    index = built(kind, 2, tmp_path, clustered_corpus())
    with pytest.raises(GateError, match="another metric"):
        published(index, 0.9, tmp_path)


def test_an_index_that_lost_or_doubled_ads_is_not_published(
    kind: str, tmp_path: Path
) -> None:
    index = built(kind, 1, tmp_path, clustered_corpus())
    (whole,) = index.shards
    index.shards = [whole, whole]
    with pytest.raises(GateError, match="hold 3000 distinct ads in 6000 entries"):
        published(index, 0.5, tmp_path)
    # The sum is right and so is the recall of all ads but one.
    doubled = np.concatenate([whole.ids[:-1], whole.ids[:1]])
    index.shards = [replace(whole, ids=doubled)]
    with pytest.raises(GateError, match="hold 2999 distinct ads in 3000 entries"):
        published(index, 0.5, tmp_path)
    index.shards = [whole]
    published(index, 0.5, tmp_path)
