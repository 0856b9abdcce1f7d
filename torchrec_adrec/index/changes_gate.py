"""What must hold of an index with changes before they are published.

Its recall was measured when the index was built, and a few ads that are masked or
compared one by one cannot change it by much: so these checks take no brute force over
all ads, and an update is published in a moment.
"""

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.gate_checks import SCORE_TOLERANCE, UNIT
from torchrec_adrec.index.updated import UpdatedIndex

SAMPLE = 200  # changed ads, and ads that are gone, that are asked for


def check_changes(
    index: UpdatedIndex, expected: Int64s, k: int, max_changed: float
) -> None:
    """Refuse changes that would answer wrongly, or are too many.

    Args:
        index: opened from the files that are to be published.
        expected: the ids of all ads after the changes, rising.
        k: number of ads that are retrieved when serving.
        max_changed: share of the ads of the index that may have changed.

    Raises:
        GateError: says what was found; nothing was published.
    """
    if index.changed_share > max_changed:
        raise GateError(
            f"{index.changed_share:.1%} of the index's ads would have changed since it"
            f" was built, index.max_changed allows {max_changed:.1%}: run `adrec index"
            " compact`, then repeat the update; nothing was published"
        )
    if not np.array_equal(index.ids, expected):
        wrong = np.setxor1d(index.ids, expected)
        raise GateError(
            f"the index would return {len(index.ids)} ads, expected {len(expected)}; ad"
            f" {wrong[:1]} is one that differs; nothing was published"
        )
    _check_answers(index, k)
    _check_self_hits(index, k)


def _check_answers(index: UpdatedIndex, k: int) -> None:
    """Ask with the vectors of what is gone and of what is new."""
    changes = index.changes
    gone = np.intersect1d(changes.touched, index.base.by_id[1])
    queries = np.concatenate(
        [index.base.stored(_some(gone)), changes.vectors[_some_rows(len(changes.ids))]]
    )
    if not len(queries):
        return
    ids, scores = index.search(queries, k)
    removed = np.isin(ids, changes.removed)
    if removed.any():
        raise GateError(f"ad {ids[removed][0]} was removed and is still returned")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise GateError("an answer holds an ad twice, as it was and as it is now")
    rows, places = np.nonzero(np.isin(ids, index.segment.ids()))
    vectors = _vectors_of(index, ids[rows, places])
    products = (queries[rows] * vectors).sum(axis=1)
    _check_scores(products, scores[rows, places])


def _check_self_hits(index: UpdatedIndex, k: int) -> None:
    """Ask for the ads of the segment with their own vectors."""
    ids = _some(index.segment.ids())
    if not len(ids):
        return
    vectors = _vectors_of(index, ids)
    squares = (vectors**2).sum(axis=1)
    # Among themselves, so that none is crowded out by a longer one of the index.
    answer, scores = index.search(vectors, len(ids), index.eligible(ids))
    matches = answer == ids[:, None]
    if not (matches.sum(axis=1) == 1).all():
        lost = ids[matches.sum(axis=1) != 1][0]
        raise GateError(f"ad {lost} was added and is not found by its own vector")
    _check_scores(squares, scores[matches])
    if np.abs(squares - 1).max() <= UNIT:
        _, scores = index.search(vectors, k)
        if not (scores[:, 0] >= squares - SCORE_TOLERANCE).all():
            raise GateError("an added ad is not among the best for its own vector")


def _check_scores(expected: Float32s, scores: Float32s) -> None:
    error = np.abs(expected - scores) / np.maximum(np.abs(expected), 1)
    # Not `error > tolerance`, which is false for NaN.
    if not (error <= SCORE_TOLERANCE).all():
        raise GateError(
            f"scores of changed ads are {error.max():.2g} away from the inner products"
            f" with their vectors, more than {SCORE_TOLERANCE:g}"
        )


def _vectors_of(index: UpdatedIndex, ids: Int64s) -> Float32s:
    changes = index.changes
    return np.asarray(changes.vectors[np.searchsorted(changes.ids, ids)])


def _some_rows(count: int) -> Int64s:
    rng = np.random.default_rng(0)
    return rng.choice(count, min(SAMPLE, count), replace=False)


def _some(ids: Int64s) -> Int64s:
    return np.asarray(ids[_some_rows(len(ids))])
