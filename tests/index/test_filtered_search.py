"""Only eligible ads leave the index, and the fewer there are the harder it looks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_index import K, N, built, clustered_corpus, corpus

from torchrec_adrec.errors import EligibilityError, ManifestError
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds.ivf import IvfFlat
from torchrec_adrec.index.manifest import FilteredSearch
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.trial import Trial


def level(share: float, nprobe: int) -> FilteredSearch:
    return FilteredSearch(
        share=share,
        search={"nprobe": nprobe},
        recall=1,
        milliseconds=1,
        all_milliseconds=2,
    )


@pytest.fixture
def index() -> ShardedIndex:
    """In memory; 2, 5 and 9 of 30 lists for all, half and a fifth of the ads."""
    exported = corpus().exported()
    index = ShardedIndex.of_vectors(IvfFlat(30), exported.ids, exported.vectors)
    index.setting = {"nprobe": 2}
    index.filtered = (level(0.5, 5), level(0.2, 9))
    return index


@pytest.mark.parametrize(
    ("share", "nprobe"), [(1, 2), (0.9, 5), (0.5, 5), (0.4, 9), (0.2, 9), (0.19, None)]
)
def test_effort_grows_as_fewer_ads_are_eligible(
    share: float, nprobe: int | None, index: ShardedIndex
) -> None:
    """A share between two levels gets the effort of the lower one."""
    setting = index.setting_for(index.eligible(index.ids()[: round(share * N)]))
    assert (setting and setting["nprobe"]) == nprobe


def test_few_eligible_ads_are_all_compared(index: ShardedIndex) -> None:
    data = corpus()
    exported = data.exported()
    mask = np.random.default_rng(0).random(N) < 0.1
    eligible = index.eligible(exported.ids[mask])
    for _ in range(2):  # the second search uses the vectors that the first one decoded
        ids, scores = index.search(data.queries, K, eligible)
        top = exported.exact_top(data.queries, K, mask)
        assert exported.returned(top, ids).all()
        products = exported.products(data.queries, ids)
        np.testing.assert_allclose(scores, products, rtol=1e-5)


def test_more_eligible_ads_than_are_kept_are_compared_in_parts(
    index: ShardedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus()
    eligible = index.eligible(index.ids()[::7])
    expected = index.compare_all(data.queries, K, eligible)
    for name in ("sharded.KEPT", "shards.DECODED_AT_ONCE"):
        monkeypatch.setattr(f"torchrec_adrec.index.{name}", 37)
    eligible = index.eligible(index.ids()[::7])
    ids, scores = index.compare_all(data.queries, K, eligible)
    assert eligible.decoded is None
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)


def test_a_filter_of_one_region_is_answered_in_full(index: ShardedIndex) -> None:
    """All eligible ads lie in lists that are far from the users: none may be short."""
    data = corpus()
    exported = data.exported()
    away = exported.vectors @ data.queries[0] < 0
    ids, _ = index.search(data.queries[:1], K, index.eligible(exported.ids[away]))
    assert ids.shape == (1, K) and np.isin(ids, exported.ids[away]).all()


def test_an_ineligible_ad_is_an_error_and_never_a_result(
    index: ShardedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from FAISS's GPU indexes, which take a selector and do not look at it."""
    data = corpus()
    eligible = index.eligible(index.ids()[::3])
    parameters = IvfFlat.search_parameters

    def without(kind: Any, setting: Any, selector: Any = None) -> Any:
        return parameters(kind, setting)

    monkeypatch.setattr(IvfFlat, "search_parameters", without)
    with pytest.raises(EligibilityError, match="not among the 1000 eligible ones"):
        index.search(data.queries, K, eligible)


def test_wrong_bits_do_not_get_by(index: ShardedIndex) -> None:
    eligible = index.eligible(index.ids()[: N // 2])
    eligible.masks = [~mask for mask in eligible.masks]
    with pytest.raises(EligibilityError):
        index.search(corpus().queries, K, eligible)


def test_ids_that_the_index_does_not_hold_are_refused(index: ShardedIndex) -> None:
    with pytest.raises(ManifestError, match=r"ad 7 is eligible and not in the index"):
        index.eligible(np.append(index.ids()[:5], 7))
    doubled = index.eligible(np.repeat(index.ids()[:5], 2))
    assert len(doubled.ids) == 5 and doubled.share == 5 / N


def test_the_gate_measures_where_comparing_all_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the share at which it takes no longer than a search."""
    data = clustered_corpus()
    index = built("ivf_flat", 1, tmp_path, data)
    times = {0.5: (1, 3), 0.2: (2, 2.5), 0.1: (2, 2), 0.05: (1, 9)}

    def milliseconds(trial: Any, setting: Any, count: int = 1) -> dict[str, float]:
        if trial.mask is None:
            return {"p50": 1, "p95": 1, "p99": 1}
        nearest = min(times, key=lambda share: abs(share - trial.mask.mean()))
        return {"p50": times[nearest][setting is None]}

    monkeypatch.setattr("torchrec_adrec.index.trial.Trial.milliseconds", milliseconds)
    gate = tune_and_validate(index, data.exported(), data.queries, K, 0.9)
    assert (
        [level.share for level in gate.filtered]
        == [0.5, 0.2]
        == [level.share for level in index.filtered]
    )
    assert all(level.recall >= 0.9 for level in gate.filtered)
    probes = [index.setting, *(level.search for level in gate.filtered)]
    assert sorted(s["nprobe"] for s in probes) == [s["nprobe"] for s in probes]


def test_other_users_judge_a_filtered_search_than_those_who_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clustered_corpus()
    index = built("ivf_flat", 1, tmp_path, data)
    reaches, judged = Trial.reaches, data.queries[20:]

    def harder_by(lost: float) -> Any:
        def reaches_less(trial: Trial, setting: Any, enough: Any) -> bool:
            is_judge = np.array_equal(trial.queries, judged)
            loss = lost if is_judge and trial.mask is not None else 0
            return reaches(trial, setting, lambda recalls: enough(recalls - loss))

        return reaches_less

    monkeypatch.setattr(
        Trial, "milliseconds", lambda _, way, n=1: dict.fromkeys(["p50"], way is None)
    )
    searches = []
    for lost in (0, 0.08, 0.2):
        monkeypatch.setattr(Trial, "reaches", harder_by(lost))
        exported = data.exported()
        gate = tune_and_validate(
            index, exported, data.queries, K, 0.9, shares=[0.5, 0.2]
        )
        assert all(level.recall >= 0.9 for level in gate.filtered)
        searches.append([level.search["nprobe"] for level in gate.filtered])
    assert [*map(len, searches)] == [2, 2, 0]
    assert searches[1] > searches[0]
