"""The cheapest search setting that is good enough, by measuring."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import faiss
import numpy as np

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.index.kinds.kind import SearchGrid, SearchSetting


def cheapest(
    grid: SearchGrid,
    reaches: Callable[[SearchSetting], bool],
    seconds: Callable[[SearchSetting], float],
) -> SearchSetting | None:
    """Find the fastest setting of a grid that reaches what is asked for.

    For each choice of the other parameters the first one is bisected, as more of it
    never costs recall. More of another parameter is only of use with less of the first
    one. The few settings that this leaves are timed.

    Args:
        grid: of a kind.
        reaches: whether a setting is good enough.
        seconds: what a search with it takes.

    Returns:
        None where no setting is good enough.
    """
    if not grid:
        return {} if reaches({}) else None
    first, *rest = grid
    candidates: list[SearchSetting] = []
    for others in product(*(grid[name] for name in rest)):
        fixed = dict(zip(rest, others, strict=True))
        # With less of all others so much of the first one was enough.
        enough = [
            candidate[first]
            for candidate in candidates
            if all(candidate[name] <= fixed[name] for name in rest)
        ]
        least = _first_that(
            reaches,
            [
                {first: value, **fixed}
                for value in grid[first]
                if not enough or value < min(enough)
            ],
        )
        if least is not None:
            candidates.append(least)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    return min(candidates, key=seconds)


def _first_that(
    reaches: Callable[[SearchSetting], bool], settings: list[SearchSetting]
) -> SearchSetting | None:
    """Bisect settings of rising thoroughness for the first that is good enough."""
    if not settings or not reaches(settings[-1]):
        return None
    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high) // 2
        if reaches(settings[middle]):
            high = middle
        else:
            low = middle + 1
    return settings[high]


def more_thorough(grid: SearchGrid, setting: SearchSetting) -> list[SearchSetting]:
    """List the settings from one to the most thorough, by rising thoroughness."""
    if not grid:
        return [setting]
    first = next(iter(grid))
    values = [value for value in grid[first] if value >= setting[first]]
    most = {name: values[-1] for name, values in grid.items()}
    return [*({**setting, first: value} for value in values), most]


def seconds_of_each(search: Callable[[int], object], count: int) -> Float64s:
    """Time single calls on one thread, after a tenth of them for warmth, (count,)."""
    with one_thread():
        for number in range(-(-count // 10)):
            search(number)
        seconds = np.empty(count)
        for number in range(count):
            started = time.perf_counter()
            search(number)
            seconds[number] = time.perf_counter() - started
    return seconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use one OpenMP thread, as a serving process does."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
