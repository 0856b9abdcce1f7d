"""A gate that lets nothing wrong through, and what single kinds of index promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_index import K, built, corpus

from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import ConfigError, GateError, ManifestError
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import derive_kind, open_kind
from torchrec_adrec.index.kinds.exact import Exact
from torchrec_adrec.index.kinds.ivf_flat import IvfFlat
from torchrec_adrec.index.manifest import Gate, IndexManifest, shard_name
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import check_files, sha256


def tuned(index: ShardedIndex, target: float, **changed: Any) -> Gate:
    """Let the corpus, or something else than was indexed, through the gate."""
    exported = vars(corpus()) | changed
    return tune_and_validate(index, **exported, k=K, target=target)


def test_a_search_leaves_the_shards_as_they_are(tmp_path: Path) -> None:
    """Requests on other threads search them at the same time."""
    data = corpus()
    index = built("ivf_flat", 2, tmp_path, data, nlist=300)
    before = [shard.index.nprobe for shard in index.shards]
    index.setting = {"nprobe": 2}
    index.search(data.queries, 500)
    assert [shard.index.nprobe for shard in index.shards] == before


def test_the_gate_takes_the_fastest_setting_that_reaches_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built("ivf_flat", 2, tmp_path, corpus())
    gate = tuned(index, 0.9)
    fastest = index.setting["nprobe"]
    assert 0.9 <= gate.recall < 1 and 1 < fastest < 30
    assert gate.score_error < 1e-5
    assert tuned(index, 1.0).recall == 1
    too_fast = {"nprobe": fastest // 2}
    monkeypatch.setattr(IvfFlat, "search_settings", lambda _: [too_fast])
    message = rf"search \(nprobe {fastest // 2}\), below index\.target_recall 0\.9;"
    with pytest.raises(GateError, match=message):
        tuned(index, 0.9)


def test_an_index_of_other_vectors_is_not_published(tmp_path: Path) -> None:
    data = corpus()
    index = built("exact", 2, tmp_path, data)
    with pytest.raises(GateError, match="other vectors"):
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


def test_kind_and_sizes_follow_from_the_number_of_ads() -> None:
    auto = IndexConfig()
    assert derive_kind(auto, 1) == derive_kind(auto, 100_000) == Exact()
    assert derive_kind(auto, 100_001) == IvfFlat(1264)
    assert derive_kind(auto, 1_000_000) == IvfFlat(4000)
    assert derive_kind(IndexConfig(kind="ivf_flat", nlist=11), 11) == IvfFlat(11)
    with pytest.raises(ConfigError, match="exceeds the 10 ads"):
        derive_kind(IndexConfig(kind="ivf_flat", nlist=11), 10)


@pytest.mark.parametrize(
    ("nlist", "expected"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_the_gate_may_choose_any_power_of_two_and_all_lists(
    nlist: int, expected: list[int]
) -> None:
    settings = IvfFlat(nlist).search_settings()
    assert [setting["nprobe"] for setting in settings] == expected


def test_the_seed_decides_where_the_lists_lie() -> None:
    sample = corpus().vectors
    # Kept, because an index frees its centres together with itself.
    indexes = [IvfFlat(30).create(sample, seed) for seed in (0, 0, 1)]
    one, again, other = (index.quantizer.reconstruct_n(0, 30) for index in indexes)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "sizes"), [("annoy", {}), ("ivf_flat", {}), ("exact", {"nlist": 1})]
)
def test_an_index_of_another_version_is_refused(
    name: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=r"is of kind .*; run `adrec index` again"):
        open_kind(name, sizes)
    (tmp_path / "index").mkdir()
    (tmp_path / "index/manifest.json").write_text('{"kind": "exact", "nlist": 1}')
    with pytest.raises(ManifestError, match="another version: run `adrec index` again"):
        IndexManifest.load(tmp_path / "index")
