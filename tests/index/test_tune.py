"""The cheapest setting is found by measuring few of a grid."""

import faiss
import pytest

from torchrec_adrec.index.kinds.kind import SearchGrid, SearchSetting
from torchrec_adrec.index.tune import cheapest, more_thorough, one_thread

GRID: SearchGrid = {"nprobe": (1, 2, 3, 5, 8, 13), "k_factor": (1, 2, 4)}


def recall(setting: SearchSetting) -> float:
    return 1 - 0.5 / setting["nprobe"] - 0.2 / setting["k_factor"]


@pytest.mark.parametrize(
    ("target", "price", "expected"),
    [
        # A list costs much: few lists and much refinement, and the other way round.
        (0.8, 1.0, {"nprobe": 5, "k_factor": 2}),
        (0.8, 0.01, {"nprobe": 5, "k_factor": 2}),
        (0.7, 0.01, {"nprobe": 5, "k_factor": 1}),
        (0.7, 10.0, {"nprobe": 2, "k_factor": 4}),
        (0.9, 1.0, {"nprobe": 13, "k_factor": 4}),
        (0.99, 1.0, None),
    ],
)
def test_the_cheapest_of_all_that_reach_the_target(
    target: float, price: float, expected: SearchSetting | None
) -> None:
    def seconds(setting: SearchSetting) -> float:
        return price * setting["nprobe"] + setting["k_factor"]

    every = [
        {"nprobe": n, "k_factor": k} for n in GRID["nprobe"] for k in GRID["k_factor"]
    ]
    enough = [setting for setting in every if recall(setting) >= target]
    best = min(enough, key=seconds) if enough else None
    assert cheapest(GRID, lambda s: recall(s) >= target, seconds) == best == expected


def test_few_settings_are_measured() -> None:
    measured = []

    def reaches(setting: SearchSetting) -> bool:
        measured.append(setting)
        return recall(setting) >= 0.8

    cheapest({**GRID, "nprobe": tuple(range(1, 1000))}, reaches, lambda _: 0)
    assert len(measured) < 30 < 3 * 999


def test_a_kind_without_parameters_reaches_the_target_or_not() -> None:
    assert cheapest({}, lambda _: True, lambda _: 0) == {}
    assert cheapest({}, lambda _: False, lambda _: 0) is None
    assert more_thorough({}, {}) == [{}]


def test_more_is_tried_until_nothing_more_is_left() -> None:
    settings = more_thorough(GRID, {"nprobe": 8, "k_factor": 2})
    assert settings[0] == {"nprobe": 8, "k_factor": 2}
    assert settings[1] == {"nprobe": 13, "k_factor": 2}
    assert settings[-1] == {"nprobe": 13, "k_factor": 4}


def test_timing_leaves_the_number_of_threads_as_it_is() -> None:
    before = faiss.omp_get_max_threads()
    with pytest.raises(ValueError, match="stop"), one_thread():
        assert faiss.omp_get_max_threads() == 1
        raise ValueError("stop")
    assert faiss.omp_get_max_threads() == before
