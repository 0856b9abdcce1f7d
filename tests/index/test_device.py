"""Building and searching on GPUs, with a stand-in for the GPU half of FAISS.

It tells what was asked of it, and that the answers stay those of the index.
"""

import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from built_index import K, built, clustered_corpus, corpus, exported, recipe
from gpu_stand_in import Library

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index import device
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.choose import Purpose, choose
from torchrec_adrec.index.device import (
    LIMIT,
    TEMPORARY,
    Gpus,
    bytes_on_each,
    check_limits,
    cloner_options,
    find_gpus,
    place,
)
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import KINDS, derive_kind
from torchrec_adrec.index.kinds.kind import fastest, most_thorough
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.ranks import SingleProcess

CLONED = {"exact", "ivf_flat", "ivf_sqfp16", "ivf_sq8"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cards(
    monkeypatch: pytest.MonkeyPatch, count: int, free: float = 80, build: str = "GPU "
) -> Library:
    """Pretend that there are cards with so many GiB free."""
    library = Library(count, build)
    monkeypatch.setattr(device, "library", library)
    monkeypatch.setattr("torchrec_adrec.index.device_build.library", library)
    monkeypatch.setattr(device, "_free_bytes", lambda card: int(free * 2**30))
    return library


@pytest.mark.parametrize("cuvs", [False, True])
def test_every_kind_is_spread_or_named(
    kind: str, cuvs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch, 2, build="GPU NVIDIA_CUVS " if cuvs else "GPU ")
    if kind not in CLONED:
        with pytest.raises(ConfigError, match=f"index.kind = {kind} cannot go to a"):
            cloner_options(recipe(kind), Gpus(2, cuvs))
        return
    options = cloner_options(recipe(kind), Gpus(2, cuvs))
    assert vars(options) == {
        "shard": True,
        "shard_type": 1,
        "common_ivf_quantizer": True,
        "indicesOptions": Library.INDICES_64_BIT,
        "useFloat16": False,
        "useFloat16CoarseQuantizer": False,
        "use_cuvs": cuvs and kind in ("exact", "ivf_flat"),
    }


@pytest.mark.parametrize("count", [1, 3])
def test_cards_answer_as_the_index_does(
    kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at settings that follow one another, which each part of a copy reads."""
    library, data = cards(monkeypatch, count), corpus()
    index = built(kind, 3, tmp_path, data)
    settings = [fastest(index.kind), most_thorough(index.kind), fastest(index.kind)]
    expected = [index.nearest(data.queries, K, setting) for setting in settings]
    if kind not in CLONED:
        with pytest.raises(ConfigError, match="cannot go to a GPU"):
            place(index, "gpu", K, tuned=True)
        place(index, "auto", K, tuned=True)
        assert not any(shard.copy for shard in index.shards) and not library.calls
        return
    place(index, "gpu", K, tuned=True)
    (shard,) = index.shards
    copy: Any = shard.copy
    assert library.calls[-1].cards == list(range(count))
    assert [one.temporary for one in copy.resources] == [TEMPORARY] * count
    searches: list[int] = []
    search = copy.search

    def watched(queries: Any, k: int, setting: Any) -> Any:
        searches.append(k)
        return search(queries, k, setting)

    monkeypatch.setattr(copy, "search", watched)
    for (ids, scores), setting in zip(expected, settings, strict=True):
        answer = index.nearest(data.queries, K, setting)
        np.testing.assert_array_equal(answer[1], scores)
        np.testing.assert_array_equal(np.sort(answer[0]), np.sort(ids))
    assert searches == [K] * 3


def test_filters_and_large_searches_stay_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card accepts a filter and ignores it: this copy fails when it is asked."""
    cards(monkeypatch, 2)
    data = clustered_corpus()
    index = built("ivf_flat", 2, tmp_path, data)
    place(index, "gpu", K, tuned=True)
    tune_and_validate(index, data.exported(), data.queries, K, 0.9)
    copy: Any = index.shards[0].copy
    assert copy.can(LIMIT, {"nprobe": LIMIT}) and copy.can(LIMIT, {})
    assert not copy.can(LIMIT + 1, {}) and not copy.can(1, {"nprobe": LIMIT + 1})
    searches: list[int] = []

    def refuse(*args: Any) -> Any:
        searches.append(1)
        raise AssertionError("the card was asked")

    monkeypatch.setattr(copy, "search", refuse)
    eligible = index.eligible(data.ids[:2000])
    ids, _ = index.nearest(data.queries, K, {"nprobe": 30}, eligible)
    assert np.isin(ids, data.ids[:2000]).all()
    index.search(data.queries, LIMIT + 1)
    assert not searches
    with pytest.raises(AssertionError, match="was asked"):
        index.search(data.queries, K)


def test_the_gate_measures_what_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch, 2)
    data = clustered_corpus()
    index = built("ivf_sqfp16", 2, tmp_path, data)
    before = tune_and_validate(index, data.exported(), data.queries, K, 0.9, shares=())
    place(index, "auto", K, tuned=False)
    after = tune_and_validate(index, data.exported(), data.queries, K, 0.9, shares=())
    assert (before.device, after.device) == ("cpu", "gpu")
    assert after.recall == before.recall


def test_lists_are_trained_and_filled_by_cards(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are those of the CPU, as the same arithmetic made them."""
    library, data = cards(monkeypatch, 2), corpus()
    answers = []
    for folder, gpus in ((tmp_path / "cpu", None), (tmp_path / "gpu", Gpus(2, False))):
        folder.mkdir()
        embeddings = exported(data, folder)
        layout = build_files(
            recipe(kind), embeddings, 2, 0, SingleProcess(), folder, gpus
        )
        index = ShardedIndex.open(folder, layout, recipe(kind))
        answers.append(index.nearest(data.queries, K, fastest(index.kind)))
    for expected, actual in zip(*answers, strict=True):
        np.testing.assert_array_equal(expected, actual)
    if kind in ("exact", "hnsw"):  # nothing is learned, and there are no lists
        assert not library.calls
        return
    clustering, *assigners = library.calls
    assert clustering.cards == [0, 1] and clustering.options.shard is False
    assert clustering.index.metric_type == faiss.METRIC_INNER_PRODUCT
    # One rank makes two pieces. Lists of packed codes, or behind a projection, are
    # filled by the CPU.
    assert [one.card for one in assigners] == ([0, 0] if kind in CLONED else [])


def test_without_a_gpu_the_cpu_is_taken_or_an_error_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for build, word in (("OPTIMIZE AVX2 ", "CPU"), ("OPTIMIZE GPU ", "GPU")):
        cards(monkeypatch, 0, build=build)
        finding = f"FAISS 1.15.1 is a {word} build and sees no GPU"
        caplog.clear()
        assert find_gpus("cpu") is None and not caplog.records
        assert find_gpus("auto") is None
        assert f"the CPU is taken, {finding}" in caplog.text
        with pytest.raises(ConfigError, match=f"= gpu, but {finding}; install"):
            find_gpus("gpu")
    cards(monkeypatch, 2, build="OPTIMIZE GPU NVIDIA_CUVS ")
    assert find_gpus("auto") == find_gpus("gpu") == Gpus(2, True)


def refused(index: ShardedIndex, message: str, caplog: Any) -> None:
    """`gpu` is an error, `auto` the CPU with the same words; nothing is half done."""
    with pytest.raises(ConfigError, match=message):
        place(index, "gpu", K, tuned=True)
    place(index, "auto", K, tuned=True)
    assert re.search(f"the CPU is taken, .*{message}", caplog.text)
    assert not any(shard.copy for shard in index.shards)


def test_what_does_not_fit_is_refused_before_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = cards(monkeypatch, 2, free=0.9)
    index = built("ivf_sq8", 1, tmp_path, corpus())
    message = r"3,000 ads as ivf_sq8 take 1\.0 GiB on each of 2 GPUs, and 0\.9 GiB are"
    refused(index, message, caplog)
    assert not library.calls
    flat = derive_kind("ivf_flat", {"nlist": 4000}, 10**6, 256)
    # 4 d + 8 bytes a vector (FAISS's GPU lists), its padding, and the centres.
    expected = 500_000 * (4 * 256 + 8) * 1.1 + 4 * 256 * 4000 + TEMPORARY
    assert bytes_on_each(flat, 10**6, 256, 2) == pytest.approx(expected)


def test_a_copy_that_lost_ads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a card FAISS copies nothing, and does not fail."""
    library = cards(monkeypatch, 2)
    library.lose = 5
    index = built("exact", 1, tmp_path, corpus())
    refused(index, "2 GPUs holds 2990 of 3000 ads", caplog)


@pytest.mark.parametrize("fault", ["spoil", "swap"])
def test_a_copy_that_answers_otherwise_is_refused(
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = cards(monkeypatch, 2)
    setattr(library, fault, True)
    index = built("exact", 1, tmp_path, corpus())
    refused(index, "other ads or scores than the index", caplog)


def test_k_and_nprobe_beyond_the_cards_limits_are_refused() -> None:
    check_limits(LIMIT, {"nprobe": LIMIT})
    for k, setting, name in (
        (LIMIT + 1, {}, "recommend.candidates = 2049"),
        (500, {"nprobe": 4000}, "nprobe = 4000"),
    ):
        with pytest.raises(ConfigError, match=f"{name} is more than the 2,048"):
            check_limits(k, dict(setting))


def test_auto_chooses_a_kind_that_can_go() -> None:
    """These vectors lie in few directions: on the CPU they would be projected."""
    rng = np.random.default_rng(0)
    centres = np.random.default_rng(1).normal(size=(50, 16))
    vectors = centres[rng.integers(50, size=4000)]
    vectors += rng.normal(scale=0.2, size=vectors.shape)
    vectors[:, 8:] *= 0.01
    sample = vectors.astype(np.float32)
    names = [
        choose(sample, sample[:50], Purpose(10**6, 500, 0.9, on_gpu=on_gpu)).kind.name
        for on_gpu in (False, True)
    ]
    assert names == ["pca_ivf_sq8_refined", "ivf_sqfp16"]
