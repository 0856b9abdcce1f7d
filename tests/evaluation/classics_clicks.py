"""Small tables of clicks."""

import numpy as np
from scipy.sparse import csr_matrix

from torchrec_adrec.evaluation.classics.interactions import SPLITS, Interactions


def table(rows: list[list[int]], ads: int, first: int = 1) -> csr_matrix:
    """A row of clicked ads for each user, numbered in their order from `first`."""
    row = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    column = np.array([ad for r in rows for ad in r], dtype=np.int64)
    numbers = np.arange(first, first + len(row), dtype=np.float64)
    return csr_matrix((numbers, (row, column)), shape=(len(rows), ads))


def interactions(splits: dict[str, list[list[int]]], ads: int) -> Interactions:
    """The clicks of each split, of users who all have a number."""
    users = len(splits["train"])
    tables = {
        name: table(splits.get(name, [[]] * users), ads, 1 + 1000 * i)
        for i, name in enumerate(SPLITS)
    }
    return Interactions(np.arange(ads), np.arange(users), tables, {}, False)


def clustered(
    users: int = 60, ads: int = 24, seed: int = 0, count: int | None = None
) -> Interactions:
    """Users of three tastes, each of which clicks a third of the ads alone.

    Args:
        users: how many.
        ads: how many.
        seed: of the order of the clicks.
        count: clicks of a user; None: all of the third.
    """
    rng = np.random.default_rng(seed)
    third = ads // 3
    rows = [u % 3 * third + rng.permutation(third)[:count] for u in range(users)]
    splits = {
        "train": [row[:-3].tolist() for row in rows],
        "valid": [row[-3:-2].tolist() for row in rows],
        "test": [row[-2:].tolist() for row in rows],
    }
    return interactions(splits, ads)
