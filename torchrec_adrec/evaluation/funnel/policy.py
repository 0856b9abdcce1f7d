"""The served lists judged by a log with propensities (`evaluation/off_policy.py`).

A logged impression is one ad; the judged policy shows one ad of the user's served list,
each with the same probability. Its reward is the click.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.run import EvaluationConfig
from torchrec_adrec.data.prepare.held_out_users import OF_ROWS
from torchrec_adrec.data.request import raw_users
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.funnel.names import FOLDER
from torchrec_adrec.evaluation.funnel.requests import Requests
from torchrec_adrec.evaluation.off_policy import LoggedRows, off_policy
from torchrec_adrec.evaluation.row_keys import RowKeys
from torchrec_adrec.runtime.files import write_durably
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import AD_ID, PROPENSITY
from torchrec_adrec.serve.recommender import Recommender

FILE = "off_policy.json"
CHUNK = 256  # users that are retrieved at a time


def evaluate_off_policy(
    run: Path, recommender: Recommender, settings: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """Estimate the click rate of the served ads and write `funnel/off_policy.json`.

    Args:
        run: a finished run.
        recommender: of it.
        settings: how many rows, and how many must be effective.
        seed: of the draw of rows, and of the resamples.

    Raises:
        ConfigError: the data tell no propensities.
        DataError: a propensity is none, or too few rows are effective.
    """
    test = pl.scan_parquet(run / "data/test/*.parquet")
    if PROPENSITY not in test.collect_schema():
        raise ConfigError(
            f"{run / 'data'} tells no propensities; name their column in"
            " data.table.propensity and prepare again, or judge by `adrec evaluate"
            " funnel`"
        )
    encoder = recommender.encoder
    requests = Requests.draw(run / "data", encoder, settings.logged_rows, seed, OF_ROWS)
    click = encoder.schema.labels[0].name
    logged = test.select(click, AD_ID, PROPENSITY).collect()[requests.rows]
    target, predicted, expected = _served(recommender, requests, logged[AD_ID])
    rows = LoggedRows(
        logged[click].cast(pl.Float64).to_numpy(),
        logged[PROPENSITY].to_numpy(),
        target,
        predicted,
        expected,
    )
    clusters = RowKeys(requests.user).clusters(len(requests))
    report = {
        "protocol": {
            "reward": click,
            "policy": "one ad of the served list, each with the same probability",
            "rows": len(requests),
            "top": recommender.checked_top(None),
            "seed": seed,
            "resampled_by": "row" if requests.user is None else "user",
            "min_effective_rows": settings.min_effective_rows,
        },
        "rows_in_lists": int((target > 0).sum()),
        **off_policy(rows, clusters, settings.min_effective_rows, seed),
    }
    (run / FOLDER).mkdir(exist_ok=True)
    write_durably(run / FOLDER / FILE, json.dumps(report, indent=1) + "\n")
    return report


def _served(
    recommender: Recommender, requests: Requests, ads: pl.Series
) -> tuple[Float64s, Float64s, Float64s]:
    """Ask for every row's user; see `LoggedRows.target`, `predicted`, `expected`.

    Args:
        recommender: of the run.
        requests: the users.
        ads: (B,) the logged ad of each row.
    """
    schema = recommender.encoder.schema
    click, ids = schema.labels[0].name, ads.to_numpy()
    target, predicted, expected = (np.zeros(len(ids)) for _ in range(3))
    row = 0
    with Progress("asking for logged users", len(ids), "users") as progress:
        for users in requests.raw.iter_slices(CHUNK):
            for served in recommender.recommend_many(raw_users(users, schema)):
                clicks = served[click].to_numpy()
                place = _place(served[AD_ID].to_numpy(), ids[row])
                expected[row] = clicks.mean()
                if place is not None:
                    target[row], predicted[row] = 1 / len(served), clicks[place]
                row += 1
            progress.advance(len(users))
    return target, predicted, expected


def _place(served: Int64s, ad: int) -> int | None:
    places = np.flatnonzero(served == ad)
    return int(places[0]) if len(places) else None
