"""What gate and serving rely on, asked of every kind of index."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import faiss
import numpy as np
import pytest
from built_index import K, N, built, clustered_corpus, corpus

from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import KINDS
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
    gate = tune_and_validate(index, data.ids, data.vectors, data.queries, K, target)
    names = [*sorted(path.name for path in folder.glob("*.faiss")), IDS]
    manifest = IndexManifest(
        embeddings=EmbeddingManifest.load(folder),
        kind=index.kind.name,
        sizes=dict(vars(index.kind)),
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
    ids, scores = loaded.search(data.queries, K)
    np.testing.assert_array_equal(ids, index.search(data.queries, K)[0])
    expected, _ = data.exact_top()
    hits = [len(set(a) & set(b)) for a, b in zip(ids, expected, strict=True)]
    assert sum(hits) >= 0.95 * expected.size
    order = np.argsort(data.ids)
    rows = order[np.searchsorted(data.ids, ids, sorter=order)]
    products = np.einsum("bd,bkd->bk", data.queries, data.vectors[rows])
    np.testing.assert_allclose(scores, products, atol=1e-5)
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
    ids, scores = built(kind, shards, tmp_path, data).search(data.queries, K)
    expected_ids, expected_scores = data.exact_top()
    assert (ids == expected_ids).mean() > 0.999
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_every_row_is_full_and_no_minus_one_leaves(kind: str, tmp_path: Path) -> None:
    data = corpus()
    # With 300 lists, the one that is read first holds about ten ads.
    index = built(kind, 3, tmp_path, data, nlist=300)
    index.setting = index.kind.search_settings()[0]
    ids, scores = index.search(data.queries, 500)
    assert ids.shape == (40, 500) and (ids >= 0).all() and np.isfinite(scores).all()
    assert all(len(set(row)) == 500 for row in ids.tolist())
    assert index.search(data.queries, N + 5)[0].shape == (40, N)


@pytest.mark.parametrize(("shards", "ranks"), [(2, 1), (2, 2), (4, 4), (3, 2), (9, 1)])
def test_any_number_of_shards_and_ranks_makes_one_index(
    kind: str, shards: int, ranks: int, tmp_path: Path
) -> None:
    """To the bit, also where a search leaves something out."""
    data = corpus()
    one = built(kind, 1, tmp_path / "one", data)
    many = built(kind, shards, tmp_path / "many", data, world_size=ranks)
    for setting in (one.kind.search_settings()[0], one.kind.search_settings()[-1]):
        one.setting = many.setting = setting
        for expected, actual in zip(
            one.search(data.queries, K), many.search(data.queries, K), strict=True
        ):
            np.testing.assert_array_equal(expected, actual)
    np.testing.assert_array_equal(many.ids(), np.sort(data.ids))


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
    index = built(kind, 4, tmp_path, clustered_corpus())
    (whole,) = index.shards
    half = replace(whole, ids=whole.ids[: N // 2])
    index.shards = [half]
    with pytest.raises(GateError, match="hold 1500 distinct ads in 1500 entries"):
        published(index, 0.5, tmp_path)
    # The sum is right again and so is the recall of half of the ads.
    index.shards = [half, half]
    with pytest.raises(GateError, match="hold 1500 distinct ads in 3000 entries"):
        published(index, 0.5, tmp_path)
    index.shards = [whole]
    published(index, 0.5, tmp_path)
