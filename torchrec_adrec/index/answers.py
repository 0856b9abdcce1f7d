"""Answers to queries: ids and scores, (B, k) each, best first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s


def nothing(rows: int) -> tuple[Int64s, Float32s]:
    """Return the answer that holds no ad."""
    return np.empty((rows, 0), np.int64), np.empty((rows, 0), np.float32)


def best_of(
    parts: Sequence[tuple[Int64s, Float32s]], k: int
) -> tuple[Int64s, Float32s]:
    """Keep the `k` best of several answers, ids and scores (B, n) each, best first."""
    ids = np.concatenate([ids for ids, _ in parts], axis=1)
    scores = np.concatenate([scores for _, scores in parts], axis=1)
    if scores.shape[1] > 4 * k:  # sorting all would cost more than the comparisons
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        ids, scores = _taken(ids, best), _taken(scores, best)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return _taken(ids, order), _taken(scores, order)


def _taken(values: Any, columns: Int64s) -> Any:
    return np.take_along_axis(values, columns, axis=1)
