"""Takes an engine into service: its error and its time are measured at load.

What an engine rounds depends on the weights and on the processor, so nothing but a
measurement on this very model tells whether its scores may be served.

Shape letters: n ads of a request, T labels.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.inference.modules import quantize_embeddings

from torchrec_adrec.arrays import Columns, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.serve.engines import ENGINES, EXACT, QUICK
from torchrec_adrec.serve.scorer import Inputs, RankingScorer

ROUNDS = 5  # over all requests, of which the fastest counts
WORTH = 1.2  # how much faster than the exact one `auto` wants an engine to be
TYPES = {"float16": torch.float16, "int8": torch.qint8}

# A user of one row, the rows of its candidates, and what joins them.
Request = tuple[TowerInput, Int64s, Columns]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """One way of computing the ranker's head, as it was measured on sample requests.

    Attributes:
        name: as in `ENGINES`.
        head: what it made of the head.
        error: the largest difference of a logit from the float32 model, its tables
            included, over all requests, ads and labels. 0.02 changes odds, or a
            predicted value, by 2%.
        milliseconds: of the dense part of one request.
    """

    name: str
    head: nn.Module
    error: float
    milliseconds: float

    def __str__(self) -> str:
        return (
            f"{self.name}: score error {self.error:.2g},"
            f" {self.milliseconds:.2f} ms a request"
        )


@torch.inference_mode()
def take_engine(
    scorer: RankingScorer, settings: RecommendConfig, requests: Sequence[Request]
) -> Engine:
    """Bring the scorer's tables and its head to the form that the settings ask for.

    Args:
        scorer: with a ranker in float32, which is changed.
        settings: `engine`, `table_type`, `max_score_error` and `ad_vectors_gb`.
        requests: on which error and time are measured.

    Raises:
        ConfigError: the error is above the bound, or there is no request.
    """
    if not requests:
        raise ConfigError(
            f"recommend.engine={settings.engine} is measured on example users, of which"
            " the data has none: give the test split some rows"
        )
    exact = [scorer.ranker.dense(*scorer.inputs(*request)) for request in requests]
    if settings.table_type != "float32":
        quantize_embeddings(scorer.ranker, TYPES[settings.table_type], inplace=True)
    scorer.look_up_ads(settings.ad_vectors_gb)
    inputs = [scorer.inputs(*request) for request in requests]
    head = scorer.ranker.head
    engines = []
    for name in QUICK if settings.engine == "auto" else (settings.engine,):
        scorer.ranker.head = ENGINES[name](head, len(scorer.schema.labels))
        engines.append(_measure(name, scorer.ranker, inputs, exact))
        log.info("ranking with %s", engines[-1])
    best = _fastest_allowed(engines, settings)
    scorer.ranker.head = best.head
    return best


def _measure(
    name: str, ranker: Any, inputs: Sequence[Inputs], exact: Sequence[Tensor]
) -> Engine:
    fastest = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        logits = [ranker.dense(*request) for request in inputs]
        fastest = min(fastest, time.perf_counter() - began)
    errors = (torch.cat(logits).double() - torch.cat([*exact]).double()).abs()
    # The maximum of a tensor is NaN where one of its numbers is.
    return Engine(name, ranker.head, errors.max().item(), fastest * 1e3 / len(inputs))


def _fastest_allowed(engines: Sequence[Engine], settings: RecommendConfig) -> Engine:
    bound = settings.max_score_error
    # Not `error > bound`, which is false for NaN.
    allowed = [engine for engine in engines if engine.error <= bound]
    if not allowed:
        raise ConfigError(
            f"recommend.engine={settings.engine} with recommend.table_type="
            f"{settings.table_type} is refused ({'; '.join(map(str, engines))}): an"
            f" error of a logit up to {bound:g} is allowed, recommend.max_score_error;"
            " set both to float32, or raise the bound"
        )
    # The exact engine gets a lead: a rounding one must be clearly faster.
    return min(
        allowed,
        key=lambda e: e.milliseconds / (WORTH if e.name == EXACT else 1),
    )
