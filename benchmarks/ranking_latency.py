"""How long it takes to rank 500 candidates: three ways, four models, interleaved.

    adrec prepare --config configs/criteo_kaggle_statistics.yaml --out RUN data.raw=FILE
    python benchmarks/ranking_latency.py RUN/data

Ways: every candidate is a whole row of user and ad, as a model without a shared user
must take it; the user is shared, in float32; and the engine that `auto` takes, with
float16 tables. The weights are random: they change no time. What pooled ads cost in AUC
is another command (two minutes a run for a small model):

    python benchmarks/rankers.py RUN/data --models transformer \
        --set ranking.ad_tokens=2 --name ad_tokens_2
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import keep_result

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.schema import Side
from torchrec_adrec.serve.engines.choose import Request, take_engine
from torchrec_adrec.serve.scorer import RankingScorer

CANDIDATES = 500
SEED_SIZE = {"model_dim": 256, "heads": 8, "layers": 3, "feedforward_dim": 1024}
# Settings of a model, and the width of its tables.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "recommended (dcnv2)": ({"model": "dcnv2"}, 8),
    "seeds' size": (SEED_SIZE, 16),
    "seeds' size, 2 tokens an ad": (SEED_SIZE | {"ad_tokens": 2}, 16),
    "seeds' size, 1 token an ad": (SEED_SIZE | {"ad_tokens": 1}, 16),
}
SELDOM = 10  # whole sequences are measured in every tenth round only

Ways = dict[str, Callable[[Request], Any]]


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--models", nargs="+", default=list(MODELS))
    arguments.add_argument("--engines", nargs="+", default=["auto"])
    arguments.add_argument("--name", default="ranking_latency", help="of the result")
    args = arguments.parse_args()
    keep_freed_memory()  # as `adrec serve` does
    torch.set_num_threads(args.threads)
    encoder = Encoder.load(args.data)
    requests = some_requests(args.data, encoder, args.requests)
    ways: Ways = {}
    engines: dict[str, str] = {}
    for model in args.models:
        shared = scorer_of(args.data, encoder, model)
        ways[f"{model}: whole rows"] = whole_rows(shared)
        ways[f"{model}: shared user"] = ranking(shared)
        for name in args.engines:
            fast = scorer_of(args.data, encoder, model)
            # The error of an engine that is named is printed and refuses nothing.
            bounds = {} if name == "auto" else {"max_score_error": 1}
            settings = RecommendConfig.model_validate(
                {"engine": name, "table_type": "float16"} | bounds
            )
            engine = take_engine(fast, settings, requests[:4])
            engines[f"{model}: {name}"] = str(engine)
            ways[f"{model}: {name}"] = ranking(fast)
    wall, spent = measure(ways, requests)
    keep_result(
        args.name,
        {
            "candidates": CANDIDATES,
            "threads": args.threads,
            "milliseconds": {name: summary(times) for name, times in wall.items()},
            # What the processor was busy with, all threads together: on a machine that
            # others use, the figure that can be compared.
            "busy": {name: summary(times) for name, times in spent.items()},
            "engines": engines,
            "seconds": wall,
        },
    )


def ranking(scorer: RankingScorer) -> Callable[[Request], object]:
    """Score a request as serving does; without a blend nobody reads the towers."""

    def score(request: Request) -> object:
        user, ads, cross = request
        return scorer.score(user, ads, np.zeros(len(ads), np.float32), cross)

    return score


def some_requests(data: Path, encoder: Encoder, count: int) -> list[Request]:
    """Example users in turn, each with other ads."""
    users = json.loads((data / "example_users.json").read_text())
    encoded = [encode(encoder, user) for user in users[:count]]
    ads = len(load_catalog(data))
    rng = np.random.default_rng(0)
    size = min(CANDIDATES, ads)
    return [
        (encoded[i % len(encoded)], rng.choice(ads, size, replace=False), {})
        for i in range(count)
    ]


def encode(encoder: Encoder, user: dict[str, Any]) -> TowerInput:
    """A raw user as the ranker's input, of one row."""
    columns = encoder.encode(raw_user(user, encoder.schema), Side.USER)
    return tower_input(columns, encoder.schema, Side.USER)


def scorer_of(data: Path, encoder: Encoder, model: str) -> RankingScorer:
    """A new ranker of random weights, the same ones each time."""
    torch.manual_seed(0)
    settings, width = MODELS[model]
    config = RankingConfig.model_validate(settings)
    ranker = build_ranker(encoder.schema, config, width).eval()
    return RankingScorer(ranker, encoder.schema, load_catalog(data))


def whole_rows(scorer: RankingScorer) -> Callable[[Request], Any]:
    """Score with a copy of the looked-up user for each ad."""

    @torch.inference_mode()
    def score(request: Request) -> Any:
        (user, ads), user_numbers, numbers = scorer.inputs(*request)
        copies = (x.repeat(len(ads), 1) for x in (user, user_numbers))
        of_user, of_user_numbers = copies
        return scorer.ranker.dense((of_user, ads), of_user_numbers, numbers)

    return score


def measure(
    ways: Ways, requests: list[Request]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every request in every way, in turn: by the clock, and busy."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number, request in enumerate(requests):
        for name, way in ways.items():
            if number % SELDOM and name.endswith("whole rows"):
                continue
            if number == 0:
                way(request)
            began, busy = time.perf_counter(), time.process_time()
            way(request)
            wall[name].append(time.perf_counter() - began)
            spent[name].append(time.process_time() - busy)
    return wall, spent


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, the 99th percentile, the least."""
    figures = {
        "median": median(seconds),
        "p99": float(np.quantile(seconds, 0.99)),
        "least": min(seconds),
    }
    return {name: round(value * 1e3, 2) for name, value in figures.items()}


if __name__ == "__main__":
    main()
