"""The figures of a judged funnel, each with an interval over users."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.run import EvaluationConfig
from torchrec_adrec.evaluation.bootstrap import LEVEL, interval, resampled_means
from torchrec_adrec.evaluation.funnel.judge import Judge, PerUser, open_judge
from torchrec_adrec.evaluation.funnel.losses import LEVELS, losses
from torchrec_adrec.evaluation.funnel.names import (
    CANDIDATES,
    FOLDER,
    METRICS,
    NDCG,
    PER_USER,
    PICTURE,
    RECALL,
    VALUE,
)
from torchrec_adrec.evaluation.pictures import funnel_picture
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import EXPORT, INDEX, RANKING, RETRIEVAL, load_record
from torchrec_adrec.runtime.files import put, write_durably
from torchrec_adrec.serve.recommender import Recommender

Report = dict[str, Any]


def evaluate_funnel(
    run: Path, recommender: Recommender, settings: EvaluationConfig, seed: int
) -> Report:
    """Judge the funnel of a run and write `funnel/` into its folder.

    metrics.json holds what is returned, users.parquet the figures of every user, by
    which two runs can be compared, and funnel.png a picture.

    Args:
        run: a finished run.
        recommender: of it.
        settings: how many users, and how deep the exact search looks.
        seed: of the draws.

    Raises:
        ConfigError, DataError, ManifestError: as of `open_judge`.
    """
    conditional = stage_settings(run / RANKING.name).ranking.conditional
    judge = open_judge(
        run,
        recommender,
        settings.funnel_users,
        settings.funnel_depth,
        seed,
        conditional,
    )
    per_user = judge.all()
    report = report_of(judge, per_user, seed)
    report["made_from"] = {
        stage.name: load_record(run, stage.name).build_id
        for stage in (RETRIEVAL, EXPORT, INDEX, RANKING)
    }
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    partial = folder / f"{PER_USER}.partial"
    per_user.frame(judge.requests.rows).write_parquet(partial)
    put(partial, folder / PER_USER)
    write_durably(folder / METRICS, json.dumps(report, indent=1) + "\n")
    funnel_picture(report, folder / PICTURE)
    return report


def report_of(judge: Judge, per_user: PerUser, seed: int) -> Report:
    """Summarise what was judged.

    Args:
        judge: says how.
        per_user: the figures.
        seed: of the draw of users, and of the resamples.

    Returns:
        `protocol`; `losses`, by stage and in all, and `rows`, by method, as means over
        users with intervals; `candidates`, the recall before ranking; `milliseconds`
        and `requests_per_second`.
    """
    values = {name: np.array(x) for name, x in per_user.values.items()}
    oracle = values[LEVELS[0]]
    lost = losses({name: values[name] for name in LEVELS})
    methods = dict.fromkeys(
        name.split(": ")[0] for name in values if name.endswith(": value")
    )
    return {
        "protocol": _protocol(judge, seed),
        "oracle": float(oracle.mean()),
        "losses": {name: _share(x, oracle, seed) for name, x in lost.items()},
        "rows": {name: _row(values, name, oracle, seed) for name in methods},
        CANDIDATES: _mean(values[f"{CANDIDATES}: {RECALL}"], seed),
        **_speed(per_user.milliseconds),
    }


def _protocol(judge: Judge, seed: int) -> Report:
    """Say how it was measured; without it the figures mean nothing."""
    recommender, neighbours = judge.recommender, judge.neighbours
    engine = recommender.engine
    return {
        "worth": judge.worth.meaning,
        "users": len(judge.requests),
        "drawn_from": judge.requests.held,
        "split": "test",
        "seed": seed,
        "top": judge.top,
        "candidates": min(recommender.settings.candidates, len(judge.vectors)),
        "depth": min(judge.depth * recommender.settings.candidates, len(judge.vectors)),
        "ads": len(judge.vectors),
        "rank_by": recommender.rank_by.formula.text,
        "engine": "float32" if engine is None else str(engine),
        "users_with_training_clicks": (
            None if neighbours is None else neighbours.known_users
        ),
        "level": LEVEL,
    }


def _row(
    values: Mapping[str, Float64s], name: str, oracle: Float64s, seed: int
) -> Report:
    row = _share(values[f"{name}: {VALUE}"], oracle, seed)
    return row | {f: _mean(values[f"{name}: {f}"], seed) for f in (RECALL, NDCG)}


def _share(value: Float64s, oracle: Float64s, seed: int) -> Report:
    """Return the mean, and its share of the oracle's; intervals of both."""
    draws = resampled_means(np.stack([value, oracle], axis=1), seed)
    shares = draws[:, 0] / draws[:, 1]
    return {
        **_mean(value, seed),
        "share": float(value.mean() / oracle.mean()),
        "share_interval": interval(shares).tolist(),
    }


def _mean(values: Float64s, seed: int) -> Report:
    draws = resampled_means(values[:, None], seed)[:, 0]
    return {"mean": float(values.mean()), "interval": interval(draws).tolist()}


def _speed(milliseconds: Mapping[str, list[float]]) -> Report:
    """Return percentiles by stage, and how many requests follow in a second."""
    cuts = (50, 95, 99)
    stages = {
        name: dict(
            zip((f"p{c}" for c in cuts), np.percentile(x, cuts).tolist(), strict=True)
        )
        for name, x in milliseconds.items()
    }
    rate = 1e3 / float(np.mean(milliseconds["total"]))
    return {"milliseconds": stages, "requests_per_second": rate}


def read_per_user(run: Path) -> pl.DataFrame | None:
    """Read the figures of every user, where the funnel of a run was judged."""
    path = run / FOLDER / PER_USER
    return pl.read_parquet(path) if path.exists() else None
