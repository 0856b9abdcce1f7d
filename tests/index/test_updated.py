"""An index with changes answers as one that was built with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from built_index import (
    Corpus,
    D,
    K,
    N,
    built,
    clustered_corpus,
    corpus,
    exported,
    on_threads,
    recipe,
)

from torchrec_adrec.errors import EligibilityError, GateError, ManifestError
from torchrec_adrec.index.brute_force import brute_force
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.changes_gate import check_changes
from torchrec_adrec.index.embeddings import ChangedEmbeddings, Embeddings
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import Absorbed, UpdatedIndex
from torchrec_adrec.runtime.ranks import SingleProcess

NEW, REPLACED, GONE = 20, 30, 25


def changed(data: Corpus, embeddings: Embeddings) -> tuple[Changes, Corpus]:
    """Some changes, and the ads as they are after them, by rising id."""
    rng = np.random.default_rng(3)
    order = rng.permutation(N)
    replaced, gone = order[:REPLACED], order[REPLACED : REPLACED + GONE]
    new_ids = rng.choice(2**61, NEW, replace=False) + 2**60
    ids = np.concatenate([data.ids[replaced], new_ids])
    # Copies of the best ads of some users, so that the new ones are in many answers.
    best = np.argsort(-(data.queries[:25] @ data.vectors.T), axis=1)[:, :2].ravel()
    vectors = data.vectors[best] * np.float32(1.001)
    changes = Changes.none(embeddings.manifest).after(
        pl.DataFrame({"ad_id": ids}), vectors, np.sort(data.ids[gone])
    )
    kept = np.setdiff1d(np.arange(N), order[: REPLACED + GONE])
    after = np.concatenate([data.ids[kept], ids])
    rows = np.argsort(after)
    whole = np.concatenate([data.vectors[kept], vectors])
    return changes, Corpus(after[rows], whole[rows], data.queries)


NOTHING = Absorbed(*(np.empty(0, dtype=np.int64) for _ in range(3)))


def all_vectors(embeddings: Embeddings, folder: Path) -> Any:
    answers = brute_force(embeddings, (), SingleProcess(), folder)
    assert answers is not None
    return answers.vectors


@pytest.fixture
def updated(tmp_path: Path) -> tuple[UpdatedIndex, Corpus]:
    """An exact index of uniform directions, with changes."""
    data = corpus()
    base = built("exact", 2, tmp_path, data)
    changes, after = changed(data, Embeddings.open(tmp_path))
    return UpdatedIndex(base, changes, NOTHING), after


def test_it_answers_as_brute_force_over_the_changed_ads(
    updated: tuple[UpdatedIndex, Corpus],
) -> None:
    index, after = updated
    assert index.count == len(after.ids) == N + NEW - GONE
    assert np.array_equal(index.ids, after.ids) and after.ids.max() > 2**61
    ids, scores = index.search(after.queries, K)
    np.testing.assert_allclose(scores, after.exact_top()[1], rtol=1e-5)
    products = after.exported().products(after.queries, ids)
    np.testing.assert_allclose(scores, products, rtol=1e-5)
    # Replaced ads are there with their new vectors, and once.
    answers = np.isin(ids, index.changes.ids)
    assert answers.sum() > 100
    assert all(len(set(row)) == K for row in ids.tolist())
    all_ids, _ = index.search(after.queries[:2], N + NEW)
    assert np.array_equal(np.sort(all_ids[0]), after.ids)


def test_removed_ads_do_not_come_back_with_a_filter(
    updated: tuple[UpdatedIndex, Corpus],
) -> None:
    index, after = updated
    changes = index.changes
    with pytest.raises(ManifestError, match=f"ad {changes.removed[0]} is eligible"):
        index.eligible(changes.removed)
    some = np.concatenate([after.ids[::3], changes.ids[:7]])
    prepared = index.eligible(some)
    ids, scores = index.search(after.queries, K, prepared)
    inside = np.isin(after.ids, some)
    few = Corpus(after.ids[inside], after.vectors[inside], after.queries)
    np.testing.assert_allclose(scores, few.exact_top()[1], rtol=1e-5)
    assert np.isin(ids, some).all()
    # A filter from before the update knows the removed ads: they are left out.
    some = after.ids[-9:]
    before = index.base.eligible(np.concatenate([changes.removed, some]))
    ids, _ = index.search(after.queries, K, before)
    assert np.array_equal(np.sort(ids, axis=1), np.tile(some, (len(ids), 1)))


def test_an_answer_with_a_removed_ad_is_an_error(
    updated: tuple[UpdatedIndex, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = updated
    search = index.base.nearest

    def unmasked(queries: Any, k: int, setting: Any, eligible: Any = None) -> Any:
        return search(queries, k, setting)

    monkeypatch.setattr(index.base, "nearest", unmasked)
    with pytest.raises(EligibilityError, match="nothing was returned"):
        index.search(index.base.stored(index.changes.removed), K)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_build_takes_the_changes_in(world_size: int, tmp_path: Path) -> None:
    data = corpus()
    plain = exported(data, tmp_path)
    changes, after = changed(data, plain)
    embeddings = ChangedEmbeddings(plain.folder, plain.manifest, changes)
    assert embeddings.count == len(after.ids)
    assert np.array_equal(embeddings.ids(), after.ids)
    assert np.array_equal(all_vectors(embeddings, tmp_path), after.vectors)
    kind = recipe("ivf_flat")
    layout = on_threads(
        world_size,
        lambda rank: build_files(kind, embeddings, 2, 0, rank, tmp_path),
    )[0]
    base = ShardedIndex.open(tmp_path, layout, kind)
    ids, scores = base.search(after.queries, K)
    np.testing.assert_allclose(scores, after.exact_top()[1], rtol=1e-5)
    # The same changes on top of it change nothing, and add nothing to compare.
    index = UpdatedIndex(base, changes, Absorbed.of(changes))
    assert index.segment.count == 0 and index.live is None
    assert index.changed_share == 0
    assert np.array_equal(index.search(after.queries, K)[0], ids)
    # One that is replaced again, and one that is removed now, are not what it holds.
    newer = changes.after(changes.ads[:1], -changes.vectors[:1], after.ids[-1:])
    index = UpdatedIndex(base, newer, Absorbed.of(changes))
    assert index.segment.ids().tolist() == changes.ids[:1].tolist()
    assert index.count == len(after.ids) - 1
    with pytest.raises(ManifestError, match="they are older"):
        UpdatedIndex(base, Changes.none(plain.manifest), Absorbed.of(changes))


def test_parts_of_which_nothing_is_left(tmp_path: Path) -> None:
    data = corpus()
    plain = exported(data, tmp_path)
    rising = np.sort(data.ids)
    none = pl.DataFrame(schema={"ad_id": pl.Int64})
    vectors = np.empty((0, D), dtype=np.float32)
    changes = Changes.none(plain.manifest).after(none, vectors, rising[500:1000])
    embeddings = ChangedEmbeddings(plain.folder, plain.manifest, changes)
    assert len(all_vectors(embeddings, tmp_path)) == embeddings.count == N - 500
    assert [len(ids) for _, ids, _ in embeddings.read(range(3))] == [500, 0, 500]


def saved(changes: Changes, folder: Path) -> Path:
    folder.mkdir()
    return folder.rename(folder.with_name(f"000001-{changes.save(folder)}"))


def test_changes_are_read_as_they_were_written(tmp_path: Path) -> None:
    plain = exported(corpus(), tmp_path)
    changes, _ = changed(corpus(), plain)
    folder = saved(changes, tmp_path / "changes")
    loaded = Changes.load(folder)
    assert loaded.ads.equals(changes.ads) and loaded.name == folder.name
    assert np.array_equal(loaded.vectors, changes.vectors)
    assert np.array_equal(loaded.removed, changes.removed)
    loaded.check_source(folder, plain.manifest)
    other = plain.manifest.model_copy(
        update={"files": {**plain.manifest.files, "x": ""}}
    )
    with pytest.raises(ManifestError, match="encodes the changed ads again"):
        loaded.check_source(folder, other)


def test_a_flipped_byte_is_refused_wherever_it_is(tmp_path: Path) -> None:
    changes, _ = changed(corpus(), exported(corpus(), tmp_path))
    folder = saved(changes, tmp_path / "changes")
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 2):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ManifestError):
                Changes.load(folder)
        path.write_bytes(content)
    # One that leaves a manifest which could be of other towers.
    path = folder / "manifest.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"step": 1', b'"step": 2'))
    with pytest.raises(ManifestError, match="was damaged or changed"):
        Changes.load(folder)
    path.write_bytes(content)
    Changes.load(folder)


def test_the_gate_refuses_what_would_answer_wrongly(
    updated: tuple[UpdatedIndex, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, after = updated
    check_changes(index, after.ids, K, 0.05)
    with pytest.raises(GateError, match=r"1\.8% of the index's ads.*compact"):
        check_changes(index, after.ids, K, 0.01)
    with pytest.raises(GateError, match="expected 2994"):
        check_changes(index, after.ids[1:], K, 0.05)
    # Nothing masked: removed ads come back, and replaced ones are there twice.
    live = index.live
    index.live = None
    index.__dict__.pop("ids")
    with pytest.raises(GateError, match="would return"):
        check_changes(index, after.ids, K, 0.05)
    index.__dict__["ids"] = after.ids
    with pytest.raises(GateError, match=r"was removed and is|twice"):
        check_changes(index, after.ids, K, 0.05)
    index.live = live
    # Vectors of other ads in the segment.
    shuffled = replace(index.changes, vectors=index.changes.vectors[::-1].copy())
    monkeypatch.setattr(index, "changes", shuffled)
    with pytest.raises(GateError, match="away from the inner products"):
        check_changes(index, after.ids, K, 0.05)


def test_few_changes_cost_no_recall(tmp_path: Path) -> None:
    data = clustered_corpus()
    base = built("ivf_flat", 2, tmp_path, data)
    gate = tune_and_validate(base, data.exported(), data.queries, K, 0.9)
    changes, after = changed(data, Embeddings.open(tmp_path))
    index = UpdatedIndex(base, changes, NOTHING)
    ids, _ = index.search(after.queries, K)
    exact = Exported(after.ids, after.vectors)
    top = exact.exact_top(after.queries, K)
    recall = exact.hits(top, exact.products(after.queries, ids)).mean()
    assert recall >= gate.recall - 0.02
