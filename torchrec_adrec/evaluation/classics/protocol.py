"""The protocols of the literature: one evaluator for every scorer.

Full ranking orders all ads of the catalog, but for those that the user is known to have
clicked. The sampled protocol orders each held-out ad among a hundred that the user has
not clicked; its figures are far higher, and the order of methods may be another one
(Krichene and Rendle, KDD 2020). So a table holds one of them alone.

Equal scores count against the held-out ad: its place is the last among its equals, so
that a scorer that knows nothing has no hits. A score that is not a number counts as the
best for all other ads, and as the worst for a held-out one.

Shape letters: B users of a block, N ads, P held-out clicks, K the longest cut.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from torchrec_adrec.arrays import Float32s, Float64s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import (
    Interactions,
    binary,
    latest,
)
from torchrec_adrec.evaluation.classics.place_metrics import (
    full_metrics,
    full_ranks,
    sampled_metrics,
)

CUTS = (5, 10, 20)
HeldOut = Literal["valid", "test"]
Result = dict[str, Any]
BLOCK_SCORES = 1 << 25  # scores held at a time: 128 MiB


class NewUsersError(DataError):
    """A scorer cannot answer as if it had never met the users."""


class Scorer(Protocol):
    """Scores of all ads for some users."""

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """Score every ad, (B, N); a new array, which the evaluator overwrites.

        Args:
            history: (B, N) what is known that each user has clicked; a value is larger
                the later the click was.
            users: (B,) numbers of the users in the table that the scorer was fitted on.
            is_new: answer as if it had never met these users: of what they did,
                `history` is all that is known.

        Raises:
            NewUsersError: it cannot.
        """


@dataclass(frozen=True)
class RankingProtocol:
    """What is ranked, and of whom: figures compare only under the same protocol.

    Attributes:
        split: the held-out clicks: valid or test.
        candidates: all: every ad that the user has not clicked in an earlier split.
            sampled: each held-out ad, and `negatives` ads that the user clicked in no
            split, drawn uniformly.
        negatives: how many.
        seed: of the draws.
        history: the number of the user's latest clicks that the scorer is given, as of
            a user it was not fitted on; None: it knows the user.
        most_users: how many users are judged at most, drawn by the seed.
        cuts: the K of the metrics.
    """

    split: HeldOut = "test"
    candidates: Literal["all", "sampled"] = "all"
    negatives: int = 100
    seed: int = 0
    history: int | None = None
    most_users: int | None = None
    cuts: tuple[int, ...] = CUTS


@dataclass(frozen=True)
class Judged:
    """The metrics of each user under a protocol.

    Attributes:
        protocol: which one.
        users: (P,) numbers of the users.
        metrics: `hr@K`, `recall@K`, `ndcg@K` and `mrr@K`, (P,) each.
    """

    protocol: RankingProtocol
    users: Int64s
    metrics: dict[str, Float64s]

    @property
    def means(self) -> dict[str, float]:
        """The mean of every metric over the users."""
        return {name: float(values.mean()) for name, values in self.metrics.items()}

    def to_json(self) -> Result:
        """Protocol, number of users and means, as `ResultTable` takes them."""
        return {
            "protocol": asdict(self.protocol) | {"cuts": list(self.protocol.cuts)},
            "users": len(self.users),
            "metrics": self.means,
        }


@dataclass
class ResultTable:
    """Results of several scorers, all under one protocol and of the same users.

    Attributes:
        rows: the means of each scorer.
        conditions: protocol and number of users, once there is a row.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    conditions: Result = field(default_factory=dict)

    def add(self, name: str, result: Result) -> None:
        """Add a scorer's result.

        Raises:
            DataError: it was judged in another way than the rows that are there.
        """
        conditions = {**result["protocol"], "users": result["users"]}
        differ = [
            f"{key}={conditions.get(key)}, not {value}"
            for key, value in self.conditions.items()
            if conditions.get(key) != value
        ]
        if differ:
            raise DataError(
                f"{name} was judged with {'; '.join(differ)}: figures of two protocols"
                " do not compare; make a table for each"
            )
        self.conditions = conditions
        self.rows[name] = result["metrics"]


def judge(scorer: Scorer, data: Interactions, protocol: RankingProtocol) -> Judged:
    """Judge a scorer on the held-out clicks of a split.

    Args:
        scorer: fitted on what is known before the split.
        data: the clicks.
        protocol: what is ranked, and of whom.

    Raises:
        DataError: a user has fewer ads to draw from than are to be drawn.
    """
    known, held = data.known(protocol.split), binary(data.splits[protocol.split])
    users = np.flatnonzero(np.diff(held.indptr))
    if protocol.most_users is not None and len(users) > protocol.most_users:
        rng = np.random.default_rng(protocol.seed)
        users = np.sort(rng.choice(users, protocol.most_users, replace=False))
    parts = [
        _judge_block(scorer, block, known, held, data, protocol)
        for block in _blocks(users, known.shape[1])
    ]
    metrics = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return Judged(protocol, users, metrics)


def cold_start(
    scorer: Scorer, data: Interactions, protocol: RankingProtocol, lengths: list[int]
) -> dict[str, Judged]:
    """Judge a scorer on the same users with ever less of their history.

    The candidates stay those of the whole history, so that the figures compare.

    Args:
        scorer: see `judge`.
        data: the clicks.
        protocol: whose `history` is replaced.
        lengths: of the history; 0 is a user of whom nothing is known.

    Raises:
        NewUsersError: the scorer needs users that it has met.
    """
    longest = int(np.diff(data.known(protocol.split).indptr).max())
    return {
        name: judge(scorer, data, replace(protocol, history=length))
        for name, length in [*((str(n), n) for n in lengths), ("all", longest)]
    }


def _blocks(users: Int64s, ads: int) -> Iterator[Int64s]:
    size = max(1, BLOCK_SCORES // ads)
    return (users[i : i + size] for i in range(0, len(users), size))


def _judge_block(
    scorer: Scorer,
    users: Int64s,
    known: csr_matrix,
    held: csr_matrix,
    data: Interactions,
    protocol: RankingProtocol,
) -> dict[str, Float64s]:
    clicked, relevant = known[users], held[users]
    length = protocol.history
    history = clicked if length is None else latest(clicked, length)
    given = scorer.scores(history, users, is_new=length is not None)
    if given.shape != clicked.shape:
        raise DataError(f"expected scores of {clicked.shape}, found {given.shape}")
    scores, row = torch.from_numpy(given), _rows(relevant)
    pairs = torch.from_numpy(row), torch.from_numpy(relevant.indices.astype(np.int64))
    target = scores[pairs].nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    scores.nan_to_num_(nan=np.inf, posinf=np.inf, neginf=-np.inf)
    if protocol.candidates == "sampled":
        ranks = _sampled_ranks(scores, target, row, users, data, protocol)
        return sampled_metrics(ranks, row, len(users), protocol.cuts)
    scores[torch.from_numpy(_rows(clicked)), clicked.indices] = -np.inf
    ranks = full_ranks(scores, target, pairs[0], max(protocol.cuts)).numpy()
    return full_metrics(ranks, row, len(users), protocol.cuts)


def _rows(table: csr_matrix) -> Int64s:
    return np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))


def _sampled_ranks(
    scores: Tensor,
    target: Tensor,
    row: Int64s,
    users: Int64s,
    data: Interactions,
    protocol: RankingProtocol,
) -> Int64s:
    """Rank each held-out ad among the drawn ones, (P,)."""
    everything = _everything(data)[users]
    drawn = np.concatenate(
        [
            draw(everything[i].indices, scores.shape[1], count, protocol, int(users[i]))
            for i, count in enumerate(np.bincount(row))
        ]
    )
    against = scores[torch.from_numpy(row)[:, None], torch.from_numpy(drawn)]
    ranks: Int64s = 1 + (against >= target[:, None]).sum(dim=1).numpy()
    return np.where(np.isneginf(target.numpy()), protocol.negatives + 1, ranks)


def can_draw(data: Interactions, protocol: RankingProtocol) -> bool:
    """Whether every user has enough ads that he has clicked in no split."""
    clicked = np.diff(_everything(data).indptr)
    return bool(len(data.ids) - clicked.max() >= protocol.negatives)


def _everything(data: Interactions) -> csr_matrix:
    return data.known("test") + data.splits["test"]


def draw(
    clicked: Int64s, ads: int, count: int, protocol: RankingProtocol, user: int
) -> Int64s:
    """Draw the negatives of a user's held-out clicks, (count, negatives).

    They depend on the seed and the user alone, so every scorer meets the same ones.

    Args:
        clicked: all that the user clicked, in any split.
        ads: N.
        count: the held-out clicks.
        protocol: how many for each, and the seed.
        user: the user's number.

    Raises:
        DataError: fewer ads are left.
    """
    left = np.delete(np.arange(ads), clicked)
    if len(left) < protocol.negatives:
        raise DataError(
            f"a user has clicked all but {len(left)} of {ads} ads, expected"
            f" {protocol.negatives} to draw; use full ranking"
        )
    rng = np.random.default_rng([protocol.seed, user])
    rows = [rng.choice(left, protocol.negatives, replace=False) for _ in range(count)]
    return np.stack(rows)
