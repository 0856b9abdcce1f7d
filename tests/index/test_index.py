"""A gate that lets nothing wrong through, and what single kinds of index promise."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from built_index import K, N, built, corpus, exported

from torchrec_adrec.errors import ConfigError, GateError, ManifestError
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import COLD, _check_recall, tune_and_validate
from torchrec_adrec.index.gate_checks import self_hits
from torchrec_adrec.index.kinds import derive_kind, open_kind
from torchrec_adrec.index.kinds.ivf import IvfFlat
from torchrec_adrec.index.kinds.ivf_refined import IvfPqRefined, PcaIvfSq8Refined
from torchrec_adrec.index.kinds.kind import steps
from torchrec_adrec.index.manifest import (
    EmbeddingManifest,
    Gate,
    IndexManifest,
    shard_name,
)
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.trial import Trial
from torchrec_adrec.runtime.files import check_files, sha256


def tuned(index: ShardedIndex, target: float, **changed: Any) -> Gate:
    """Let the corpus, or something else than was indexed, through the gate."""
    data = replace(corpus(), **changed)
    return tune_and_validate(index, data.exported(), data.queries, K, target)


def test_a_search_leaves_the_shards_as_they_are(tmp_path: Path) -> None:
    """Requests on other threads search them at the same time."""
    data = corpus()
    index = built("ivf_flat", 2, tmp_path, data, nlist=300)
    before = [shard.index.nprobe for shard in index.shards]
    index.setting = {"nprobe": 2}
    index.search(data.queries, 500)
    assert [shard.index.nprobe for shard in index.shards] == before


def test_the_gate_takes_the_cheapest_setting_that_reaches_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built("ivf_flat", 2, tmp_path, corpus())
    gate = tuned(index, 0.9)
    cheapest = index.setting["nprobe"]
    assert 0.9 <= gate.recall < 1 and 1 < cheapest < 30
    assert gate.low <= gate.recall <= gate.high
    assert gate.score_error < 1e-5 and gate.code_error == 0
    assert gate.queries == gate.tuned_on == 20
    assert tuned(index, 1.0).recall == 1
    grid = {"nprobe": (1, int(cheapest) // 2)}
    monkeypatch.setattr(IvfFlat, "search_grid", lambda _: grid)
    message = rf"search \(nprobe {cheapest // 2}\), below index\.target_recall 0\.9;"
    with pytest.raises(GateError, match=message):
        tuned(index, 0.9)


def test_other_users_judge_than_those_who_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that some users chose is raised until others confirm it."""
    index = built("ivf_flat", 1, tmp_path, corpus())
    reaches = Trial.reaches
    judged = corpus().queries[20:]

    def harder(trial: Trial, setting: Any, enough: Any) -> bool:
        loss = 0.1 if np.array_equal(trial.queries, judged) else 0
        return reaches(trial, setting, lambda recalls: enough(recalls - loss))

    easy = tuned(index, 0.8), index.setting["nprobe"]
    monkeypatch.setattr(Trial, "reaches", harder)
    hard = tuned(index, 0.8), index.setting["nprobe"]
    assert hard[1] > easy[1] and hard[0].recall > easy[0].recall


def test_a_setting_that_reads_fewer_ads_than_are_asked_for_is_not_enough() -> None:
    """49 near duplicates have a recall of .98 at 50, and all ads would be compared."""
    rng, near = np.random.default_rng(0), K - 1
    centres = rng.normal(size=(20, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    close = np.repeat(centres, near, axis=0)
    vectors: Any = close + rng.normal(scale=1e-3, size=close.shape)
    vectors = vectors.astype(np.float32)
    ids = np.arange(len(vectors))
    index = ShardedIndex.of_vectors(IvfFlat(20), ids, vectors)
    users = np.repeat(centres, 2, axis=0).astype(np.float32)
    trial = Trial(index, Exported.by_id(ids, vectors), users, K)
    assert trial.recalls({"nprobe": 1}).mean() > 0.9
    gate = tune_and_validate(index, trial.exported, users, K, 0.9, shares=())
    assert index.setting["nprobe"] > 1 and gate.short_lists == 0


def test_search_parameters_that_are_given_are_only_measured(tmp_path: Path) -> None:
    index = built("ivf_sq8_refined", 1, tmp_path, corpus())
    data = corpus()
    gate = tune_and_validate(
        index, data.exported(), data.queries, K, 0.5, {"nprobe": 7}
    )
    assert index.setting["nprobe"] == 7 and gate.recall < 1
    assert all(level.search["nprobe"] == 7 for level in gate.filtered)


def test_ads_of_few_impressions_are_measured_apart(tmp_path: Path) -> None:
    """Lists that hold only cold ads are never read: their recall is 0, and told."""
    data = corpus()
    index = built("ivf_flat", 1, tmp_path, data)
    index.setting = {"nprobe": 10}
    exported = data.exported()
    trial = Trial(index, exported, data.queries, K)
    ids, _ = index.nearest(data.queries, K, index.setting)
    missed = np.setdiff1d(trial.top.rows, exported.rows(ids))
    groups = np.zeros(N, dtype=np.int64)
    groups[missed] = COLD
    exported = replace(exported, groups=groups)
    gate = tune_and_validate(index, exported, data.queries, K, 0.5, {"nprobe": 10})
    assert set(gate.by_popularity) == {"1", "cold"}
    assert gate.by_popularity["cold"].recall == 0
    assert gate.by_popularity["cold"].ads == len(missed)
    assert gate.by_popularity["1"].recall > gate.recall > gate.worst_shard - 1e-9


def test_a_vector_that_is_no_number_is_not_published() -> None:
    """No search returns its ad and brute force does not miss it."""
    data = corpus().exported()
    data.vectors[7] = np.nan
    index = ShardedIndex.of_vectors(IvfFlat(30), data.ids, corpus().vectors)
    with pytest.raises(GateError, match=f"1 of 3000 .* ad {data.ids[7]} is one"):
        tune_and_validate(index, data, corpus().queries, K, 0.5)


def test_a_manifest_that_names_no_hash_of_a_file_is_refused(tmp_path: Path) -> None:
    """Nothing would be compared with anything."""
    manifest = exported(corpus(), tmp_path).manifest
    manifest.model_copy(update={"files": {}}).save(tmp_path)
    with pytest.raises(ManifestError, match=r"no hash of part-00000\.parquet"):
        EmbeddingManifest.load(tmp_path)


def test_an_index_that_doubles_ads_in_an_answer_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built("exact", 1, tmp_path, corpus())
    search = index.search

    def doubling(queries: Any, k: int) -> Any:
        ids, scores = search(queries, k)
        ids[3, 1], scores[3, 1] = ids[3, 0], scores[3, 0]
        return ids, scores

    monkeypatch.setattr(index, "search", doubling)
    with pytest.raises(GateError, match="1 of 20 answers hold an ad twice"):
        tuned(index, 0.9)


def test_ads_that_do_not_find_themselves_are_told() -> None:
    """Users near some ads cannot see that others are lost behind a broken quantiser."""
    data = corpus()
    vectors = data.vectors / np.linalg.norm(data.vectors, axis=1, keepdims=True)
    exported = replace(data, vectors=vectors).exported()
    index = ShardedIndex.of_vectors(IvfFlat(30), exported.ids, exported.vectors)
    index.setting = {"nprobe": 1}
    assert self_hits(index, exported) == 1
    assert self_hits(index, corpus().exported()) is None
    # Centres in another order send every query to lists of other vectors.
    ivf: Any = faiss.extract_index_ivf(index.shards[0].index)
    centres = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    ivf.quantizer.reset()
    ivf.quantizer.add(np.roll(centres, 1, axis=0))
    hits = self_hits(index, exported)
    assert hits is not None and hits < 0.7
    with pytest.raises(GateError, match="are found by their own vector"):
        _check_recall(index, np.ones(3), hits, K, 0.9)


def test_an_index_of_other_vectors_is_not_published(tmp_path: Path) -> None:
    data = corpus()
    index = built("exact", 2, tmp_path, data)
    with pytest.raises(GateError, match="other vectors; nothing"):
        tuned(index, 0.9, ids=np.roll(data.ids, 1))


def test_a_score_that_is_no_number_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built("exact", 2, tmp_path, corpus())
    search = index.search

    def broken(queries: Any, k: int) -> Any:
        ids, scores = search(queries, k)
        scores[0, -1] = np.nan
        return ids, scores

    monkeypatch.setattr(index, "search", broken)
    with pytest.raises(GateError, match="scores that are nan away"):
        tuned(index, 0.9)


def test_a_cut_shard_is_found(tmp_path: Path) -> None:
    built("exact", 1, tmp_path, corpus())
    path = tmp_path / shard_name(0)
    hashes = {path.name: sha256(path)}
    check_files(tmp_path, hashes)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ManifestError, match="expected sha256"):
        check_files(tmp_path, hashes)


def test_build_parameters_follow_from_the_ads() -> None:
    assert derive_kind("ivf_flat", {}, 1_000_000, 8) == IvfFlat(4000)
    assert derive_kind("ivf_flat", {"nlist": 11}, 11, 8) == IvfFlat(11)
    assert derive_kind("ivf_pq_refined", {}, 10_000, 8) == IvfPqRefined(400, 4)
    assert derive_kind("pca_ivf_sq8_refined", {"pca": 3}, 100, 8).training_rows == 2560
    for name, build, message in (
        ("ivf_flat", {"nlist": 11}, "nlist = 11, expected 1 to 10"),
        ("ivf_flat", {"pca": 4}, "has 'pca', index.kind ivf_flat takes nlist"),
        ("exact", {"nlist": 4}, "exact takes no build parameters"),
        ("hnsw", {"links": 1}, "expected 2 or more links"),
    ):
        with pytest.raises(ConfigError, match=message):
            derive_kind(name, build, 10, 8)
    for kind, message in (
        (PcaIvfSq8Refined(4, 9), "expected 1 to 8"),
        (IvfPqRefined(4, 3), "does not divide 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            kind.create(corpus().vectors, 0)


def test_steps_lead_in_fifths_to_the_end() -> None:
    for most in (1, 2, 30, 4000):
        numbers = steps(1, most)
        assert numbers[0] == 1 and numbers[-1] == most
        assert (np.diff(numbers) > 0).all()
        assert all(b <= max(a + 1, 1.2 * a) for a, b in pairwise(numbers))


def test_the_seed_decides_where_the_lists_lie() -> None:
    sample = corpus().vectors
    # Kept, because an index frees its centres together with itself.
    indexes = [IvfFlat(30).create(sample, seed) for seed in (0, 0, 1)]
    one, again, other = (index.quantizer.reconstruct_n(0, 30) for index in indexes)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "build"), [("annoy", {}), ("ivf_flat", {}), ("exact", {"nlist": 1})]
)
def test_an_index_of_another_version_is_refused(
    name: str, build: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=r"is of kind .*; run `adrec index` again"):
        open_kind(name, build)
    (tmp_path / "000001-a").mkdir()
    (tmp_path / "000001-a/manifest.json").write_text('{"kind": "exact", "nlist": 1}')
    with pytest.raises(ManifestError, match="another version: run `adrec index` again"):
        IndexManifest.load(tmp_path / "000001-a")
