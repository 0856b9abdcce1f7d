"""Judge the served funnel on held-out users: its worth, its losses, its rivals.

Every list comes from the recommender that serves: no stage is built again here.
docs/evaluation.md has the definitions.

Shape letters: N ads of the catalog, Q requests, K candidates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.config.objectives import Conditional
from torchrec_adrec.data.adapters import synthetic
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.held_out_users import OF_ALL, OF_CLICKED
from torchrec_adrec.errors import ConfigError, DataError, ManifestError
from torchrec_adrec.evaluation.funnel.figures import Truth
from torchrec_adrec.evaluation.funnel.losses import (
    Reached,
    best_of,
    exact_first,
    levels,
)
from torchrec_adrec.evaluation.funnel.names import (
    CANDIDATES,
    FUNNEL,
    IDEAL,
    ITEM_ITEM,
    POPULARITY,
    RANDOM,
    RECALL,
    RETRIEVAL,
)
from torchrec_adrec.evaluation.funnel.requests import Requests
from torchrec_adrec.evaluation.funnel.rivals import ItemItem, most_shown
from torchrec_adrec.evaluation.funnel.worth import LoggedWorth, TrueWorth, Worth
from torchrec_adrec.evaluation.shown import shown_counts
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.schema import AD_ID, SCORE, Side
from torchrec_adrec.serve.recommendation import Recommendation
from torchrec_adrec.serve.recommender import Recommender


@dataclass
class PerUser:
    """Figures of each request, (Q,) each once all are judged.

    Attributes:
        values: `METHOD: FIGURE` and the levels -> a value for each request.
        milliseconds: of the stages, by name.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    milliseconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: dict[str, float], answer: Recommendation) -> None:
        """Add the figures of one request."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        for name, value in answer.milliseconds.items():
            self.milliseconds.setdefault(name, []).append(value)

    def frame(self, rows: Int64s) -> pl.DataFrame:
        """Return a line for each request, named by its row of the test split."""
        return pl.DataFrame({"row": rows} | self.values)


@dataclass(frozen=True)
class Judge:
    """Asks the recommender for every user and judges what each stage leaves.

    Attributes:
        recommender: of the run, as it serves.
        requests: the held-out users.
        worth: of the ads, to each of them.
        vectors: (N, D) exported, in the order of the catalog.
        queries: (Q, D) of the users, by the towers that serve.
        impressions: (N,) in training.
        neighbours: None where the data names no user.
        depth: the exact search finds so many times the candidates.
    """

    recommender: Recommender
    requests: Requests
    worth: Worth
    vectors: Float32s
    queries: Float32s
    impressions: Int64s
    neighbours: ItemItem | None
    depth: int
    _filters: dict[bytes, EligibleAds] = field(default_factory=dict)

    @property
    def top(self) -> int:
        """The length of a list."""
        return self.recommender.checked_top(None)

    def all(self) -> PerUser:
        """Judge every request."""
        users, per_user = self.requests.users(), PerUser()
        self.recommender.recommend(users[0])  # the first call pays for allocations
        for request, user in enumerate(users):
            may_be_shown = self.worth.eligible(request)
            eligible = np.flatnonzero(may_be_shown)
            count = min(self.recommender.settings.candidates, len(eligible))
            if count < self.top:
                raise DataError(
                    f"{len(eligible)} ads may be shown at test row"
                    f" {self.requests.rows[request]}, expected at least {self.top}"
                )
            # All candidates in their served order: its first ads are the served list.
            answer = self.recommender.recommend(user, count, self._filter(may_be_shown))
            per_user.add(self._figures(request, eligible, answer), answer)
        return per_user

    def _filter(self, may_be_shown: Bools) -> EligibleAds | None:
        """Prepare the ads that may be shown once for all requests; None: all may."""
        if may_be_shown.all():
            return None
        key = np.packbits(may_be_shown).tobytes()
        if key not in self._filters:
            self._filters[key] = self.recommender.eligible_ads(may_be_shown)
        return self._filters[key]

    def _figures(
        self, request: int, eligible: Int64s, answer: Recommendation
    ) -> dict[str, float]:
        """Judge the lists of one request: levels, and figures by method."""
        worth, relevant = self.worth.of(request, self.top)
        truth = Truth(worth, relevant, eligible, self.top)
        ranked = self.recommender.scorer.rows(answer.ads[AD_ID].to_numpy())
        towers = answer.ads[SCORE].to_numpy()
        scores = self.vectors @ self.queries[request]
        depth = min(self.depth * len(ranked), len(eligible))
        exact, deep = exact_first(scores, eligible, ranked, depth)
        lists = {
            FUNNEL: ranked,
            IDEAL: best_of(worth, ranked, self.top),
            RETRIEVAL: ranked[np.lexsort((ranked, -towers))],
            POPULARITY: most_shown(self.impressions, eligible),
        }
        if self.neighbours is not None:
            lists[ITEM_ITEM] = self.neighbours.order(request, eligible)
        judged = {name: truth.figures(rows) for name, rows in lists.items()}
        judged |= {RANDOM: truth.random_figures()}
        judged |= {CANDIDATES: {RECALL: truth.recall(ranked)}}
        flat = {f"{n}: {f}": x for n, row in judged.items() for f, x in row.items()}
        return levels(worth, Reached(eligible, deep, exact, ranked), self.top) | flat


def open_judge(
    run: Path,
    recommender: Recommender,
    users: int,
    depth: int,
    seed: int,
    conditional: Mapping[str, Conditional],
) -> Judge:
    """Draw the users of a finished run and read what their ads are worth.

    Args:
        run: its folder.
        recommender: of it.
        users: how many, at most.
        depth: see `Judge`.
        seed: of the draw.
        conditional: `ranking.conditional` of the run.

    Raises:
        ConfigError: ads of the run were updated since the export.
        DataError: no user can be judged.
        ManifestError: the users are not test rows, or the exported vectors are not
            those of the catalog.
    """
    if recommender.changes:
        # The test rows know the ads as they were: a removed one would count as missed
        # by the index, a replaced one by its old vector, and an added one not at all.
        raise ConfigError(
            f"the ads of {run} were updated since the export ({recommender.changes}),"
            " and the test rows know them as they were: judge a run before its first"
            " update, or one that is trained on newer rows in another folder"
        )
    data, encoder = run / "data", recommender.encoder
    catalog = load_catalog(data)
    ids, impressions = catalog[AD_ID].to_numpy(), shown_counts(data, catalog)
    is_known = has_truth(data)
    kind = OF_ALL if is_known else OF_CLICKED
    requests = Requests.draw(data, encoder, users, seed, kind)
    worth: Worth
    if is_known:
        worth = TrueWorth.read(
            data, requests.rows, catalog, recommender.rank_by, conditional
        )
    else:
        worth = LoggedWorth.read(
            data, requests.rows, requests.user, ids, encoder.schema
        )
    exported, vectors = load_vectors(run / "export")
    if not np.array_equal(exported, ids):
        raise ManifestError(
            f"{run / 'export'} holds other ads than the catalog; export again"
        )
    neighbours = None
    if requests.user is not None:
        neighbours = ItemItem.count(
            data, requests.user, ids, impressions, encoder.schema
        )
    queries = _vectors(recommender, requests)
    return Judge(
        recommender, requests, worth, vectors, queries, impressions, neighbours, depth
    )


def has_truth(data: Path) -> bool:
    """Tell whether a prepared data set is a known world whose test rows are last.

    Its law must be there to judge ads that were not shown: rows with their p(click)
    alone, as those of the movie lab, are judged by their clicks.
    """
    split_by = json.loads((data / "report.json").read_text())["split_by"]
    law = data / synthetic.TRUTH / synthetic.WORLD
    return law.exists() and split_by == "time"


@torch.inference_mode()
def _vectors(recommender: Recommender, requests: Requests) -> Float32s:
    users = tower_input(requests.encoded, recommender.encoder.schema, Side.USER)
    return np.asarray(recommender.retriever.tower(users).numpy())
